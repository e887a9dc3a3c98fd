"""Check that a network answers plain images with finite numbers; if not, name where that begins.

Finite weights are not enough: a factor of 1e20 in two layers overflows float32 in the second. Such
a network is refused when it is loaded, before a search or an optimiser takes its answers for
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.canonical.answers import answer_of
from edgeclean.load.trial_images import trial_images
from edgeclean.networks.features import hooked
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import ModelSpec

_PAIRS_OF_NOISE = 2  # two are several, and little memory where one image takes much


@torch.no_grad()
def check_answers(module: nn.Module, spec: ModelSpec, *, few: bool = False) -> None:
    """Run a few plain images through the network, one alone and the others in pairs.

    Black, white and average images, a ramp, and noise.

    Args:
        module: the network, in evaluation mode.
        spec: its input shape, classes and scaling.
        few: whether black and white must do, for a network that takes much time or memory.

    Raises:
        InputRejectedError: it does not take several images, or an answer is NaN or infinite; then
            the line names the first layer that makes finite numbers into others.
    """
    for pixels in _plain_images(spec, few=few):
        batch = normalize(pixels, spec)
        answers = answer_of(module, batch)
        if tuple(answers.shape) != (len(batch), spec.classes):
            raise InputRejectedError(
                f"for {len(batch)} images the network gives {tuple(answers.shape)}; with "
                f"{spec.classes} classes it must give ({len(batch)}, {spec.classes})"
            )
        require_numbers(module, batch, answers, spec)


@torch.no_grad()
def require_numbers(
    module: nn.Module, batch: Float[Tensor, "n c h w"], answers: Tensor, spec: ModelSpec
) -> None:
    """Check the answers to a batch of normalised images.

    Raises:
        InputRejectedError: one is NaN or infinite; the line names the first layer that makes it.
    """
    if _is_finite(answers):
        return
    begins = f"{_origin(module, batch)} is the first that makes them of finite numbers"
    flat = bool((batch == batch[..., :1, :1]).all())
    if flat and _is_finite(module(normalize(trial_images(spec.input_shape, 4), spec))):
        raise InputRejectedError(
            "the network answers an image of one colour, and no other, with NaN or infinity; "
            f"{begins}, as a division by the image's own standard deviation does, which is zero "
            "there; add a small number to the divisor"
        )
    raise InputRejectedError(
        f"the network answers a plain image with NaN or infinity; {begins}: its weights, or those "
        "before it, are too large for float32, or it divides by zero"
    )


def _plain_images(spec: ModelSpec, *, few: bool) -> Iterator[Float[Tensor, "n c h w"]]:
    """Yield the plain images as pixels in [0, 1], the same at every call: black, then pairs.

    Made as they are taken: an image may have a hundred million numbers.
    """
    shape = spec.input_shape
    black, white = torch.zeros(shape), torch.ones(shape)
    yield black[None]
    yield torch.stack([black, white])
    if few:
        return
    del black, white
    mean = torch.tensor(spec.mean).clamp(0, 1).view(-1, 1, 1).expand(shape)
    ramp = torch.linspace(0, 1, shape[2]).expand(shape)
    yield torch.stack([mean, ramp])
    generator = torch.Generator().manual_seed(0)
    for _ in range(_PAIRS_OF_NOISE):
        yield torch.rand(2, *shape, generator=generator)


def _origin(module: nn.Module, batch: Tensor) -> str:
    """Return the first module, in order of execution, that turns finite numbers into others.

    A module ends after all that it is made of, so the innermost one is met first.
    """
    found: list[str] = []
    got: dict[int, list[bool]] = {}  # a stack for each module: one may run within itself

    def before(layer: nn.Module, inputs: Any) -> None:
        got.setdefault(id(layer), []).append(_is_finite(inputs))

    def after(name: str) -> Any:
        def ran(layer: nn.Module, _inputs: Any, output: Any) -> None:
            if got[id(layer)].pop() and not _is_finite(output):
                found.append(name)

        return ran

    handles = []
    for name, layer in module.named_modules():
        handles.append(layer.register_forward_pre_hook(before))
        handles.append(layer.register_forward_hook(after(name)))
    with hooked(handles):
        module(batch)
    return f"its layer {found[0]}" if found and found[0] else "what is between its layers"


def _is_finite(values: Any) -> bool:
    return all(bool(torch.isfinite(one).all()) for one in _tensors(values))


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for one in values:
            yield from _tensors(one)
