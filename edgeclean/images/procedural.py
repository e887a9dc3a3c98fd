"""Procedural images: dead leaves over 1/f noise, which carry no network's trigger.

Natural images are close to occluding shapes of many sizes ("dead leaves", Lee, Mumford & Huang,
2001) and have amplitude spectra that fall as 1/f (Field, 1987). Such images cost nothing, depend
on no network, and so serve three times: as the start of inversion, as a mixture beside
inverted images (which may carry a backdoor's trigger), and alone where a network has no BatchNorm.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LEAVES = 24  # shapes an image: enough to cover it several times over


def procedural_images(
    count: int, shape: tuple[int, int, int], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Draw ``count`` images of ``shape`` (channels, height, width) in [0, 1]."""
    channels, height, width = shape
    texture = _fractal_noise(count, shape, generator)
    images = _colours(count, channels, generator) + 0.22 * texture
    rows = torch.arange(height, dtype=torch.float32).view(1, -1, 1)
    columns = torch.arange(width, dtype=torch.float32).view(1, 1, -1)
    only_noise = torch.rand(count, 1, 1, 1, generator=generator) < 0.15
    for leaf in range(LEAVES):
        cover = _leaf_cover(rows, columns, count, generator)
        absent = only_noise | (torch.rand(count, 1, 1, 1, generator=generator) < 0.2)
        cover = torch.where(absent, torch.zeros(()), cover)
        surface = _colours(count, channels, generator) + 0.08 * texture.roll(3 * leaf, 0)
        images = images * (1 - cover) + surface * cover
    return images.clamp(0, 1)


def _leaf_cover(
    rows: Tensor, columns: Tensor, count: int, generator: torch.Generator
) -> Float[Tensor, "n 1 h w"]:
    """Draw a soft-edged ellipse or rectangle in each image: 1 inside, 0 outside."""

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, generator=generator)

    height, width = rows.shape[1], columns.shape[2]
    radius = (0.06 + 0.5 * uniform() ** 3) * min(height, width)
    dy, dx = rows - uniform() * height, columns - uniform() * width
    angle, aspect = uniform() * torch.pi, 0.3 + 0.7 * uniform()
    u = dx * torch.cos(angle) + dy * torch.sin(angle)
    v = (dy * torch.cos(angle) - dx * torch.sin(angle)) / aspect
    ellipse, rectangle = torch.hypot(u, v), torch.maximum(u.abs(), v.abs())
    distance = torch.where(uniform() < 0.5, ellipse, rectangle)
    # An edge is a pixel wide at every size, as where a lens is sharper than the sensor.
    return torch.sigmoid((radius - distance) * 1.5).unsqueeze(1)


def _fractal_noise(
    count: int, shape: tuple[int, int, int], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Draw noise: mean 0, variance 1, amplitudes 1/f^a with a in [0.8, 1.6], mostly grey."""
    channels, height, width = shape
    frequency = torch.hypot(
        torch.fft.fftfreq(height).view(-1, 1), torch.fft.rfftfreq(width).view(1, -1)
    )
    frequency[0, 0] = 1.0 / max(height, width)
    slope = 0.8 + 0.8 * torch.rand(count, 1, 1, 1, generator=generator)
    bins = (count, channels, height, width // 2 + 1)
    spectrum = torch.complex(
        torch.randn(bins, generator=generator), torch.randn(bins, generator=generator)
    )
    noise = torch.fft.irfft2(spectrum / frequency**slope, s=(height, width))
    noise = noise - noise.mean((2, 3), keepdim=True)
    if height * width > 1:  # one pixel has no deviation, and is zero by now
        noise = noise / noise.std((2, 3), keepdim=True).clamp_min(1e-6)
    grey = noise.mean(1, keepdim=True) * channels**0.5
    colourfulness = 0.5 * torch.rand(count, 1, 1, 1, generator=generator)
    mixture: Tensor = colourfulness * noise + (1 - colourfulness) * grey
    return mixture


def _colours(count: int, channels: int, generator: torch.Generator) -> Float[Tensor, "n c 1 1"]:
    """Draw muted colours: a grey level and a smaller deviation of each channel from it."""
    grey = torch.rand(count, 1, 1, 1, generator=generator)
    chroma = torch.rand(count, channels, 1, 1, generator=generator) - 0.5
    return (grey + 0.45 * chroma).clamp(0, 1)
