"""Compare an imported network with what ONNX Runtime answers for the file as it came.

No step of the import is trusted: whatever it left out, or read otherwise, shows in the answers for
a few images: black, white, and those of `trial_images`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.reference import TOGETHER, Answers
from edgeclean.load.trial_images import trial_images
from edgeclean.networks.features import hooked

SHARE = 1e-4  # of the largest answer: what two orders of adding up float32 may differ by
# How often the difference that rounding makes of our own network may occur: in another order of
# adding up, and in steps that are the file's own.
ROUNDINGS, OWN_ROUNDINGS = 32, 8
MOST_ROUNDING = 0.01  # a network that float32 knows no better by is no classifier to rely on
MOST_NARROW = 0.5  # of the largest answer, that rounding to 16 bits may make
# Rounding to 8 bits is noise beside what the answers differ by from image to image: 0.02 to 0.1 of
# it. Where it is more, as of few levels in use, the file computes by it, and is another network.
MOST_QUANTISATION = 0.3
PLAIN = 2  # black and white, the first images: their answers differ so much that they hide that


def plain_images(
    shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "10 c h w"]:
    """Return plain images, normalised, the same at every call.

    A black one, a white one, and eight that differ in brightness, contrast and smoothness: what a
    network computes by rounding shows where its values are small.
    """
    ends = torch.zeros(1, *shape), torch.ones(1, *shape)
    pixels = torch.cat([*ends, trial_images(shape, 8)])
    return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@torch.no_grad()
def check_same(module: nn.Module, images: Tensor, answers: Answers) -> dict[str, Any]:
    """Check that the import answers as the file does.

    Args:
        module: the imported network, in evaluation mode.
        images: the images [n, c, h, w] that the answers are for.
        answers: those of ONNX Runtime.

    Returns:
        Notes for the report: the largest difference, as a share of the largest answer.

    Raises:
        InputRejectedError: it answers otherwise, by more than rounding explains.
    """
    ours = _one_by_one(module, images)
    exact = answers.file if answers.lifted is None else answers.lifted
    notes: dict[str, Any] = {}
    for name, theirs in (("compared", exact), ("compared_together", answers.together)):
        if theirs is not None and not (name == "compared_together" and answers.rounded):
            compared = ours if theirs is exact else ours[:TOGETHER]
            share = _share(compared, torch.from_numpy(theirs))
            if share > SHARE:
                exact_share = _share(_as_double(module, images), ours)
                _refuse_above(share, min(ROUNDINGS * exact_share, MOST_ROUNDING))
            notes[name] = share
    if answers.lifted is not None and answers.file is not None:
        notes["compared_as_rounded"] = _check_rounding(
            module, images, ours, torch.from_numpy(answers.file), answers.rounded
        )
    return notes


def _one_by_one(module: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([module(one[None]).flatten(1) for one in images])


def _check_rounding(
    module: nn.Module, images: Tensor, ours: Tensor, theirs: Tensor, rounded: str
) -> float:
    """Return the share by which a file's own rounding moves its answers, if that explains them."""
    if rounded != "quantised":
        kind = torch.bfloat16 if rounded == "bfloat16" else torch.float16
        steps = _share(_in_steps(module, images, kind), ours)
        share = _share(ours, theirs)
        _refuse_above(share, max(SHARE, min(OWN_ROUNDINGS * steps, MOST_NARROW)))
        return share
    share = _share_of_spread(ours[PLAIN:], theirs[PLAIN:])
    if not share <= MOST_QUANTISATION:
        raise InputRejectedError(
            "the network in float does not answer as the quantised file does under ONNX Runtime: "
            f"rounding moves the answers by {share:.2g} of what they differ by from image to "
            f"image, and at most {MOST_QUANTISATION} is noise; give the float network"
        )
    return share


def _share_of_spread(ours: Tensor, theirs: Tensor) -> float:
    """Return the differences as a share of how the answers vary over the images, by their norms."""
    if _share(ours, theirs) == float("inf"):
        return float("inf")
    finite = torch.isfinite(theirs)  # what is not is left to `finite.check_answers`
    difference = torch.where(finite, ours - theirs, 0.0)
    theirs = torch.where(finite, theirs, 0.0)
    spread = (theirs - theirs.mean(0)).norm() + SHARE * theirs.norm()  # of a constant answer, 0
    return float(difference.norm() / spread) if difference.any() else 0.0


def _share(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference as a share of the largest answer; infinite where shapes differ.

    Answers that are not finite in both are left to `finite.check_answers`, which names the layer.
    """
    finite = torch.isfinite(theirs) if ours.shape == theirs.shape else None
    if finite is None or bool((torch.isfinite(ours) != finite).any()):
        return float("inf")
    difference = (ours - theirs)[finite].abs()
    largest = float(theirs[finite].abs().max()) if difference.numel() else 0.0
    worst = float(difference.max()) if difference.numel() else 0.0
    return worst / largest if worst else 0.0


def _refuse_above(share: float, allowed: float) -> None:
    if not share <= allowed:
        raise InputRejectedError(
            "the imported network does not answer as the file does under ONNX Runtime: the largest "
            f"difference on plain images is {share:.2g} of the largest answer, and at most "
            f"{allowed:.2g} is rounding; export it at another opset, and tell us"
        )


def _as_double(module: nn.Module, images: Tensor) -> Tensor:
    """Return the answers computed in double precision."""
    state = {name: one.double() for name, one in _numbers(module).items()}
    answers = [torch.func.functional_call(module, state, (one[None].double(),)) for one in images]
    return torch.cat(answers).flatten(1).float()


def _numbers(module: nn.Module) -> Mapping[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: one for name, one in tensors.items() if one.is_floating_point()}


def _in_steps(module: nn.Module, images: Tensor, kind: torch.dtype) -> Tensor:
    """Return the answers of a network that rounds what each of its layers puts out."""

    def rounded(_layer: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.to(kind).to(output.dtype) if torch.is_floating_point(output) else output

    with hooked([layer.register_forward_hook(rounded) for layer in module.children()]):
        return _one_by_one(module, images.to(kind).float())
