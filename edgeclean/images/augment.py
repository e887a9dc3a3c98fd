"""Random views of synthetic images: shifts, mirrors, colours, pieces and mixtures of others.

They are made where the images are, so that a GPU does not wait for a processor to make them. What
is drawn is drawn on the processor: a seed means the same everywhere.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def augmented(
    pixels: Float[Tensor, "n c h w"], generator: torch.Generator, share: float = 1 / 16
) -> Float[Tensor, "n c h w"]:
    """Mirror half of the images and shift all alike by up to ``share``, edges reflected.

    A side of one pixel, as signals have, has nothing to reflect and is not shifted.
    """
    count, _, height, width = pixels.shape
    rows, columns = (min(max(1, round(side * share)), side - 1) for side in (height, width))
    mirrored = torch.rand(count, 1, 1, 1, generator=generator).to(pixels.device) < 0.5
    flipped = torch.where(mirrored, pixels.flip(3), pixels)
    padded = functional.pad(flipped, (columns, columns, rows, rows), mode="reflect")
    top = int(torch.randint(2 * rows + 1, (), generator=generator))
    left = int(torch.randint(2 * columns + 1, (), generator=generator))
    return padded[:, :, top : top + height, left : left + width]


def mixed(pixels: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Blend half of the images with up to an equal share of another image of the batch."""
    count = len(pixels)
    share = 0.5 * torch.rand(count, 1, 1, 1, generator=generator).to(pixels.device)
    share = share * (torch.rand(count, 1, 1, 1, generator=generator).to(pixels.device) < 0.5)
    other = pixels[torch.randperm(count, generator=generator)]
    return (1 - share) * pixels + share * other


def recoloured(
    pixels: Float[Tensor, "n c h w"], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Make every image a little brighter or darker, tinted, and of more or less contrast."""
    count, channels = pixels.shape[:2]
    light = 0.15 * torch.randn(count, 1, 1, 1, generator=generator).to(pixels.device)
    tint = 0.05 * torch.randn(count, channels, 1, 1, generator=generator).to(pixels.device)
    spread = torch.randn(count, 1, 1, 1, generator=generator).to(pixels.device)
    contrast = torch.exp(0.25 * spread)
    mean = pixels.mean((2, 3), keepdim=True)
    return ((pixels - mean) * contrast + mean + light + tint).clamp(0, 1)


def patched(
    pixels: Float[Tensor, "n c h w"], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Put a rectangle of another image of the batch on half of them (CutMix, Yun et al. 2019)."""
    count, _, height, width = pixels.shape

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, generator=generator).to(pixels.device)

    row, column = uniform() * height, uniform() * width
    tall, wide = (0.08 + 0.33 * uniform()) * height, (0.08 + 0.33 * uniform()) * width
    rows, columns = (torch.arange(side, device=pixels.device) for side in (height, width))
    down = (rows.view(1, -1, 1) - row).abs() < tall
    right = (columns.view(1, 1, -1) - column).abs() < wide
    inside = (down & right & (uniform() < 0.5)).unsqueeze(1)
    other = pixels[torch.randperm(count, generator=generator)]
    return torch.where(inside, other, pixels)
