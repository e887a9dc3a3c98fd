"""Bring a loaded network into a form that every stage can take, or say why that cannot be done."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.canonical.answers import Logits, LogitsAt, answer_of, find_logits
from edgeclean.load.canonical.decisions import decision
from edgeclean.load.canonical.graph import CannotWriteError, exported
from edgeclean.load.canonical.settle import settle_
from edgeclean.load.canonical.sigmoid import refuse_probabilities, without_last_sigmoid
from edgeclean.load.canonical.trial import Reason, is_close, reason_to_rewrite
from edgeclean.load.canonical.writing import written
from edgeclean.load.finite import require_numbers
from edgeclean.load.limits import LoadLimits
from edgeclean.load.trial_images import trial_images
from edgeclean.networks.autocast import channels_last
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import JsonValue, ModelSpec
from edgeclean.networks.steps import StepNetwork

_IMAGES = 4  # one of each kind
_FEW = 2  # enough to be several, where each is worked on many times
_TOLERANCE = 1e-4  # of the largest output
_WAY_OUT = (
    "change that code, or export the network to ONNX where it runs and give that file with --arch "
    "onnx"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A network that every stage can take.

    Attributes:
        module: the network itself where it was one already.
        notes: what was done to it, for the history; empty if nothing was.
    """

    module: nn.Module
    notes: dict[str, JsonValue] = field(default_factory=dict)


def stock_form(module: nn.Module, spec: ModelSpec, limits: LoadLimits) -> Form:
    """Return the network as one that every stage can take.

    A network of plain layers, whose code every stage can take, is returned as it is. Else it is
    written out as stock layers called in order, and compared with itself.

    Args:
        module: in evaluation mode; has taken an image of the spec's shape.
        spec: its image shape and classes.
        limits: bounds what is written out.

    Raises:
        InputRejectedError: a stage would fail, and the network cannot be written out; or it gives
            no finite logits, answers at random, mixes the images of a batch, or decides by
            numbers.
    """
    notes: dict[str, JsonValue] = {}
    images = normalize(trial_images(spec.input_shape, _IMAGES), spec)
    settled = settle_(module, images)
    if settled:
        notes["settled"] = settled
    with torch.no_grad():
        at = _logits_at(module, images[:_FEW], spec)
        expected = answer_of(Logits(module, at), images.clone())
    require_numbers(module, images, expected, spec)
    _refuse_decisions(module, images[:_FEW])
    reason = reason_to_rewrite(Logits(module, at) if at.why else module, images, expected)
    if at.why:
        reason = Reason(at.why)
    if reason is None:
        return Form(module=module, notes=notes)
    try:
        rewritten = _rewritten(module, at, spec, limits)
        _compare(rewritten, Logits(module, at), images)
        shorter = without_last_sigmoid(rewritten) if at.single else None
        if shorter is not None:
            _compare_odds(shorter, images, expected)
    except CannotWriteError as error:
        if reason.needed:
            raise InputRejectedError(
                f"no stage can take the network as it is ({reason}), and it cannot be written "
                f"out as plain layers: {error}; {_WAY_OUT}"
            ) from None
        return Form(module=module, notes={**notes, "kept_as_it_is": reason.why})
    if shorter is not None:
        why = f"{reason.why}; the sigmoid behind it is left out"
        return Form(module=shorter, notes={**notes, "written_out": why})
    if at.single:
        refuse_probabilities(rewritten, spec)
    return Form(module=rewritten, notes={**notes, "written_out": reason.why})


def _refuse_decisions(module: nn.Module, images: Float[Tensor, "n c h w"]) -> None:
    why = decision(module, images)
    if why is not None:
        raise InputRejectedError(
            f"the network's code decides by the numbers of its images ({why}), so that what is "
            "written for a device would be the one of its ways that an example took; write it "
            "without (torch.where takes both ways), or export one way to ONNX yourself and give "
            "that file with --arch onnx"
        )


def as_stock_layers(module: nn.Module, spec: ModelSpec, limits: LoadLimits) -> nn.Module:
    """Return the network as stock layers called in order, whether a stage needs that or not.

    Args:
        module: in evaluation mode; gives logits alone.
        spec: its image shape and classes.
        limits: bounds what is written out.

    Raises:
        InputRejectedError: it cannot be written out; names the layer.
    """
    try:
        rewritten = _rewritten(module, LogitsAt(), spec, limits)
        _compare(rewritten, module, normalize(trial_images(spec.input_shape, _IMAGES), spec))
    except CannotWriteError as error:
        raise InputRejectedError(
            f"the network cannot be written out as plain layers: {error}; {_WAY_OUT}"
        ) from None
    return rewritten


def _rewritten(module: nn.Module, at: LogitsAt, spec: ModelSpec, limits: LoadLimits) -> StepNetwork:
    graph = exported(Logits(module, at).eval(), spec.input_shape, limits.onnx_nodes)
    leaves = [name for name, one in module.named_modules() if not any(one.children())]
    return written(graph, leaves, limits.file_bytes).float().eval()


@torch.no_grad()
def _compare(rewritten: nn.Module, original: nn.Module, images: Float[Tensor, "n c h w"]) -> None:
    """Compare on several images, on one, and in both orders of memory.

    Raises:
        CannotWriteError: they differ, or the stages cannot take this form either.
    """
    expected = original(images.clone())
    try:
        answers = [
            (rewritten(images), expected),
            (rewritten(images[:1]), expected[:1]),
            (rewritten(images[:_FEW]), expected[:_FEW]),
            (channels_last(rewritten)(images.to(memory_format=torch.channels_last)), expected),
        ]
        rewritten.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    except Exception as error:
        raise CannotWriteError(f"{type(error).__name__}: {str(error)[:200]}") from error
    for got, right in answers:
        if not is_close(got, right, _TOLERANCE):
            raise CannotWriteError("what was written out computes something else")
    reason = reason_to_rewrite(rewritten, images, expected)
    if reason is not None and reason.needed:
        raise CannotWriteError(str(reason))


@torch.no_grad()
def _compare_odds(
    shorter: nn.Module, images: Float[Tensor, "n c h w"], expected: Float[Tensor, "n k"]
) -> None:
    """Compare the logit that a sigmoid was left out behind with the probabilities.

    Raises:
        CannotWriteError: they differ.
    """
    if not is_close(shorter(images)[:, 1].sigmoid(), expected[:, 1], _TOLERANCE):
        raise CannotWriteError("without its last sigmoid it computes something else")


@torch.no_grad()
def _logits_at(module: nn.Module, images: Float[Tensor, "n c h w"], spec: ModelSpec) -> LogitsAt:
    """Find the logits among the answers to several images.

    One image alone does not tell: code that squeezes its answer loses the axis of the images then.
    """
    answer = answer_of(module, images.clone())
    try:
        return find_logits(answer, len(images), spec.classes)
    except InputRejectedError:
        one = answer_of(module, images[:1].clone())
        find_logits(one, 1, spec.classes)  # the message is of one image
        raise
