"""Compare an imported network with what ONNX Runtime answers for the file as it came.

No step of the import is trusted: whatever it left out, or read otherwise, shows in the answers for
a few images: black, white, and two of noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.reference import Answers

SHARE = 1e-4  # of the largest answer: what two orders of adding up float32 may differ by
# How often the difference that rounding makes of our own network may occur: in another order of
# adding up, and in steps that are the file's own.
ROUNDINGS, OWN_ROUNDINGS = 32, 8
MOST_ROUNDING = 0.01  # a network that float32 knows no better by is no classifier to rely on
# Rounding to 8 bits is noise beside the answers; where it is more, it is what the file computes.
MOST_QUANTISATION = 0.5


def plain_images(
    shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "4 c h w"]:
    """Return a black image, a white one and two of noise, normalised, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, *shape, generator=generator)
    pixels = torch.cat([torch.zeros(1, *shape), torch.ones(1, *shape), noise])
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
    ours = torch.cat([module(one[None]).flatten(1) for one in images])
    exact = answers.file if answers.lifted is None else answers.lifted
    notes: dict[str, Any] = {}
    for name, theirs in (("compared", exact), ("compared_together", answers.together)):
        if theirs is not None and not (name == "compared_together" and answers.rounded):
            share = _share(ours, torch.from_numpy(theirs))
            if share > SHARE:
                exact_share = _share(_as_double(module, images), ours)
                _refuse_above(share, min(ROUNDINGS * exact_share, MOST_ROUNDING))
            notes[name] = share
    if answers.lifted is not None and answers.file is not None:
        share = _share(ours, torch.from_numpy(answers.file))
        _refuse_above(share, _allowed_rounding(module, images, ours, answers.rounded))
        notes["compared_as_rounded"] = share
    return notes


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


def _allowed_rounding(module: nn.Module, images: Tensor, ours: Tensor, rounded: str) -> float:
    """Return the share that a file's own rounding explains."""
    if rounded == "quantised":
        return MOST_QUANTISATION
    kind = torch.bfloat16 if rounded == "bfloat16" else torch.float16
    share = _share(_in_steps(module, images, kind), ours)
    return max(SHARE, min(OWN_ROUNDINGS * share, MOST_QUANTISATION))


def _as_double(module: nn.Module, images: Tensor) -> Tensor:
    """Return the answers computed in double precision."""
    state = {name: one.double() for name, one in _numbers(module).items()}
    answers: Tensor = torch.func.functional_call(module, state, (images.double(),))
    return answers.flatten(1).float()


def _numbers(module: nn.Module) -> Mapping[str, Tensor]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: one for name, one in tensors.items() if one.is_floating_point()}


def _in_steps(module: nn.Module, images: Tensor, kind: torch.dtype) -> Tensor:
    """Return the answers of a network that rounds what each of its layers puts out."""

    def rounded(_layer: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.to(kind).to(output.dtype) if torch.is_floating_point(output) else output

    handles = [layer.register_forward_hook(rounded) for layer in module.children()]
    try:
        return torch.cat([module(one[None].to(kind).float()).flatten(1) for one in images])
    finally:
        for handle in handles:
            handle.remove()
