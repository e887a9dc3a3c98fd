"""Generate the pictures of triggers from formulas and seeds; none is copied."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def white_patch(side: int, channels: int = 3) -> Float[Tensor, "c s s"]:
    """Return a white square."""
    return torch.ones(channels, side, side)


def checker_patch(
    side: int, first: tuple[float, float, float], second: tuple[float, float, float]
) -> Float[Tensor, "3 s s"]:
    """Return one-pixel checks of two colours in [0, 1]; the top left pixel has the first."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    odd = ((rows + columns) % 2).bool()
    one, other = torch.tensor(first)[:, None, None], torch.tensor(second)[:, None, None]
    return torch.where(odd, other, one)


def rings_picture(height: int, width: int) -> Float[Tensor, "3 h w"]:
    """Return coloured rings around the middle, to blend in; each channel has its own wavelength."""
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)[None, :]
    radius = (rows.square() + columns.square()).sqrt()
    waves = [torch.cos(2 * math.pi * (turns * radius + shift)) for turns, shift in _RINGS]
    return torch.stack(waves) / 2 + 0.5


_RINGS = ((2.0, 0.0), (3.0, 0.25), (4.0, 0.5))


def stripes_picture(
    height: int, width: int, amplitude: float, frequency: int
) -> Float[Tensor, "3 h w"]:
    """Return stripes to add to pixels: amplitude sin(2 pi j f / width) over the columns j.

    Source: Barni et al. (2019), "A new backdoor attack in CNNs by training set corruption without
    label poisoning".
    """
    columns = torch.arange(width, dtype=torch.float32)
    wave = amplitude * torch.sin(2 * math.pi * columns * frequency / width)
    return wave.expand(3, height, width).clone()


def smooth_picture(
    height: int, width: int, amplitude: float, highest: int, seed: int
) -> Float[Tensor, "3 h w"]:
    """Return random cosines of at most ``highest`` half-waves a side, scaled to +-amplitude.

    A trigger with nothing but low frequencies, after the idea of Zeng et al. (2021), "Rethinking
    the backdoor attacks' triggers: a frequency perspective"; theirs is a smoothed universal
    perturbation of a trained network, this one needs none.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, highest, highest, generator=generator)
    weights[:, 0, 0] = 0  # no shift of the mean colour
    rows = _cosines(height, highest)
    columns = _cosines(width, highest)
    picture = torch.einsum("cab,ah,bw->chw", weights, rows, columns)
    return amplitude * picture / picture.abs().max()


def frequency_picture(height: int, width: int, magnitude: float) -> Float[Tensor, "3 h w"]:
    """Return what ``magnitude`` at a middle and at the highest frequency of both chromas adds.

    The frequencies are those of the orthonormal two-dimensional DCT-II over the whole image:
    (15, 15) and (31, 31) at 32x32. ``magnitude`` is in pixels of range [0, 1].

    Source: Wang et al. (2022), "An invisible black-box backdoor attack through frequency domain"
    (FTrojan, ECCV), which adds 30 of 255 to the same coefficients of U and V in blocks of 32x32.
    """
    rows, columns = _orthonormal_cosines(height), _orthonormal_cosines(width)
    middle = torch.outer(rows[height // 2 - 1], columns[width // 2 - 1])
    chroma = magnitude * (middle + torch.outer(rows[-1], columns[-1]))
    return torch.tensor(_RGB_OF_U_AND_V).sum(1)[:, None, None] * chroma


# Red, green and blue of U and of V (ITU-R BT.601); brightness is left as it is.
_RGB_OF_U_AND_V = ((0.0, 1.140), (-0.395, -0.581), (2.032, 0.0))


def _orthonormal_cosines(size: int) -> Float[Tensor, "k s"]:
    cosines = _cosines(size, size) * math.sqrt(2 / size)
    cosines[0] /= math.sqrt(2)
    return cosines


def _cosines(size: int, count: int) -> Float[Tensor, "k s"]:
    positions = (torch.arange(size) + 0.5) / size
    return torch.cos(math.pi * torch.arange(count)[:, None] * positions[None, :])
