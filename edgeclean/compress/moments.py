"""Second moments of what flows into a convolution, patch by patch, on given images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.compress.fit import lower_triangle

_IMAGES_AT_ONCE = 16
_PATCHES_PER_ENTRY = 6  # a moment of n x n entries is settled by a few times n patches
_LEAST_PATCHES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Second moments of the patches that one convolution multiplies, as a network feeds them.

    Attributes:
        own: mean of p p', with p a patch as this network makes it.
        crossed: mean of q p', with q the same patch as the reference network makes it.
    """

    own: Float[Tensor, "patch patch"]
    crossed: Float[Tensor, "patch patch"]


def input_moments(
    module: nn.Module,
    layer: str,
    images: Float[Tensor, "n c h w"],
    reference: nn.Module | None = None,
) -> Moments:
    """The moments of one layer's input patches.

    Args:
        module: holds the convolution ``layer``; evaluated up to it.
        layer: its dotted name.
        images: normalised.
        reference: a network of the same layers; None for ``module`` itself.
    """
    conv = module.get_submodule(layer)
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"layer {layer} is a {type(conv).__name__}, not a convolution")
    size = conv.weight[0].numel()
    own = torch.zeros(size, size, device=images.device, dtype=torch.float64)
    crossed = own if reference is None else torch.zeros_like(own)
    patches = 0
    for batch in torch.split(images, _IMAGES_AT_ONCE):
        most = max(_PATCHES_PER_ENTRY * size, _LEAST_PATCHES) * len(batch) // len(images)
        mine = _patches(conv, _input_of(module, layer, batch), most)
        own += mine @ mine.T
        if reference is not None:
            theirs = _patches(conv, _input_of(reference, layer, batch), most)
            crossed += theirs @ mine.T
        patches += mine.shape[1]
    own /= patches
    if reference is not None:
        crossed /= patches
    return Moments(own=own, crossed=crossed)


def corrected_kernel(
    kernel: Float[Tensor, "out in kh kw"], moments: Moments, ridge: float
) -> Float[Tensor, "out in kh kw"]:
    """The kernel whose outputs on this network's patches come nearest to the reference's.

    Least squares with a ridge towards the kernel itself: it also undoes, as far as this layer can,
    what the layers before it changed.
    """
    matrix = kernel.detach().double().flatten(1)
    level = float(moments.own.diagonal().mean())
    damping = ridge * level if level > 0 else 1.0
    target = matrix @ moments.crossed + damping * matrix
    own = moments.own.clone()
    own.diagonal().add_(damping)
    solved = torch.cholesky_solve(target.T, lower_triangle(own)).T
    return solved.reshape(kernel.shape).to(kernel.dtype)


class _ReachedError(Exception):
    """The layer whose input was asked for has been reached; the rest need not run."""


def _input_of(module: nn.Module, layer: str, batch: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def stop(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _ReachedError

    handle = module.get_submodule(layer).register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            module(batch)
    except _ReachedError:
        return seen[0]
    finally:
        handle.remove()
    raise ValueError(f"layer {layer} does not run in the forward pass")


def _patches(conv: nn.Conv2d, entered: Tensor, most: int) -> Tensor:
    """[in * kh * kw, patches], at most about ``most`` of them, evenly over the image."""
    padding = conv.padding
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if padding == "same":  # torch puts the odd pixel at the right and bottom
            entered = functional.pad(
                entered,
                (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2),
            )
        padding = (0, 0)
    unfolded: Tensor = functional.unfold(
        entered.float(), conv.kernel_size, conv.dilation, padding, conv.stride
    )
    patches = unfolded.permute(1, 0, 2).flatten(1)
    step = max(1, patches.shape[1] // max(1, most))
    # An odd step does not fall on the same column of every row.
    return patches[:, :: step if step % 2 or step == 1 else step + 1]
