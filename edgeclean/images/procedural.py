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

from edgeclean.networks.batching import images_shown

LEAVES = 24  # shapes an image: enough to cover it several times over


def procedural_images(
    count: int, shape: tuple[int, int, int], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Draw ``count`` images of ``shape`` (channels, height, width) in [0, 1].

    Of large images few are worked on at a time; what is drawn is the same.
    """
    channels, height, width = shape
    texture = _fractal_noise(count, shape, generator)
    images = (0.22 * texture).add_(_colours(count, channels, generator))
    only_noise = torch.rand(count, 1, 1, 1, generator=generator) < 0.15
    for leaf in range(LEAVES):
        leaves = _leaves(count, height, width, generator)
        absent = only_noise | (torch.rand(count, 1, 1, 1, generator=generator) < 0.2)
        colours = _colours(count, channels, generator)
        for part in torch.arange(count).split(images_shown(shape)):
            cover = _cover(leaves[:, part], height, width) * ~absent[part]
            surface = colours[part] + 0.08 * texture[(part - 3 * leaf) % count]
            images[part] = images[part] * (1 - cover) + surface * cover
    return images.clamp_(0, 1)


def _leaves(
    count: int, height: int, width: int, generator: torch.Generator
) -> Float[Tensor, "6 n 1 1"]:
    """Draw a leaf an image: radius, row, column, angle, aspect, and which of two shapes it is."""

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, generator=generator)

    radius = (0.06 + 0.5 * uniform() ** 3) * min(height, width)
    row, column = uniform() * height, uniform() * width
    angle, aspect = uniform() * torch.pi, 0.3 + 0.7 * uniform()
    return torch.stack([radius, row, column, angle, aspect, uniform()])


def _cover(leaves: Float[Tensor, "6 n 1 1"], height: int, width: int) -> Float[Tensor, "n 1 h w"]:
    """Return soft-edged ellipses and rectangles: 1 inside, 0 outside."""
    radius, row, column, angle, aspect, kind = leaves
    dy = torch.arange(height, dtype=torch.float32).view(1, -1, 1) - row
    dx = torch.arange(width, dtype=torch.float32).view(1, 1, -1) - column
    u = dx * torch.cos(angle) + dy * torch.sin(angle)
    v = (dy * torch.cos(angle) - dx * torch.sin(angle)) / aspect
    ellipse, rectangle = torch.hypot(u, v), torch.maximum(u.abs(), v.abs())
    distance = torch.where(kind < 0.5, ellipse, rectangle)
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
    spectrum = torch.empty(bins, dtype=torch.complex64)
    for half in torch.view_as_real(spectrum).unbind(-1):
        half.copy_(torch.randn(bins, generator=generator))
    colourfulness = 0.5 * torch.rand(count, 1, 1, 1, generator=generator)
    images = torch.empty(count, *shape)
    for part in torch.arange(count).split(images_shown(shape)):
        noise = torch.fft.irfft2(spectrum[part] / frequency ** slope[part], s=(height, width))
        noise = noise - noise.mean((2, 3), keepdim=True)
        if height * width > 1:  # one pixel has no deviation, and is zero by now
            noise = noise / noise.std((2, 3), keepdim=True).clamp_min(1e-6)
        grey = noise.mean(1, keepdim=True) * channels**0.5
        images[part] = colourfulness[part] * noise + (1 - colourfulness[part]) * grey
    return images


def _colours(count: int, channels: int, generator: torch.Generator) -> Float[Tensor, "n c 1 1"]:
    """Draw muted colours: a grey level and a smaller deviation of each channel from it."""
    grey = torch.rand(count, 1, 1, 1, generator=generator)
    chroma = torch.rand(count, channels, 1, 1, generator=generator) - 0.5
    return (grey + 0.45 * chroma).clamp(0, 1)
