"""Random views of synthetic images: shifts, mirrors and mixtures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def augmented(
    pixels: Float[Tensor, "n c h w"], generator: torch.Generator, share: float = 1 / 16
) -> Float[Tensor, "n c h w"]:
    """Half of the images mirrored, all shifted alike by up to ``share``, edges reflected."""
    count, _, height, width = pixels.shape
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
    mirrored = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    flipped = torch.where(mirrored, pixels.flip(3), pixels)
    padded = functional.pad(flipped, (columns, columns, rows, rows), mode="reflect")
    top = int(torch.randint(2 * rows + 1, (), generator=generator))
    left = int(torch.randint(2 * columns + 1, (), generator=generator))
    return padded[:, :, top : top + height, left : left + width]


def mixed(pixels: Float[Tensor, "n c h w"], generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Half of the images blended with up to an equal share of another image of the batch."""
    count = len(pixels)
    share = 0.5 * torch.rand(count, 1, 1, 1, generator=generator)
    share = share * (torch.rand(count, 1, 1, 1, generator=generator) < 0.5)
    other = pixels[torch.randperm(count, generator=generator)]
    return (1 - share) * pixels + share * other
