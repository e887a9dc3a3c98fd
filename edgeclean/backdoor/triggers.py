"""Reconstructed triggers: each stamps images, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from edgeclean.networks.finite import require_finite


@runtime_checkable
class Trigger(Protocol):
    """One trigger; ``stamp`` never changes its argument."""

    def stamp(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the images with the trigger on, in [0, 1]."""
        ...

    def preview(self) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "h w"]]:
        """Return (pattern, mask) for a picture, both in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True)
class MaskedTrigger:
    """A patch, sticker or blend: x (1 - mask) + pattern mask (Neural Cleanse, Wang et al. 2019)."""

    mask: Float[Tensor, "1 h w"]
    pattern: Float[Tensor, "c h w"]

    def stamp(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """See `Trigger.stamp`."""
        return pixels * (1 - self.mask) + self.pattern * self.mask

    def preview(self) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "h w"]]:
        """See `Trigger.preview`."""
        return self.pattern, self.mask[0]


@dataclass(frozen=True, slots=True)
class AdditiveTrigger:
    """A trigger clip(x + delta): whole-image noise, low-frequency and sinusoidal patterns."""

    delta: Float[Tensor, "c h w"]

    def stamp(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """See `Trigger.stamp`."""
        return (pixels + self.delta).clamp(0, 1)

    def preview(self) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "h w"]]:
        """See `Trigger.preview`: the delta, amplified to fill the range about mid grey."""
        size = self.delta.abs().amax().clamp_min(1e-6)
        strength = self.delta.square().mean(0).sqrt()
        return 0.5 + 0.5 * self.delta / size, strength / strength.amax().clamp_min(1e-6)


@dataclass(frozen=True, slots=True)
class WarpTrigger:
    """A trigger that resamples x along one smooth flow for all images (WaNet, Nguyen & Tran 2021).

    ``flow`` is in units of the sampling grid: 2 / width is one pixel; ``control`` are the coarse
    points, in pixels, that it was interpolated from.
    """

    flow: Float[Tensor, "h w 2"]
    control: Float[Tensor, "2 p q"]

    def stamp(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """See `Trigger.stamp`."""
        return warp(pixels, self.flow.expand(pixels.shape[0], -1, -1, -1))

    def preview(self) -> tuple[Float[Tensor, "c h w"], Float[Tensor, "h w"]]:
        """See `Trigger.preview`: horizontal and vertical displacement as red and green."""
        size = self.flow.abs().amax().clamp_min(1e-6)
        shown = 0.5 + 0.5 * self.flow.permute(2, 0, 1) / size
        length = self.flow.norm(dim=2)
        pattern = torch.cat([shown, torch.full_like(shown[:1], 0.5)])
        return pattern, length / length.amax().clamp_min(1e-6)


def warp(
    pixels: Float[Tensor, "n c h w"], flow: Float[Tensor, "n h w 2"]
) -> Float[Tensor, "n c h w"]:
    """Sample each image bilinearly at the identity grid plus its flow.

    Raises:
        NotFiniteError: the flow is NaN or infinite somewhere.
    """
    # Native code makes an address of each place that it samples at: of NaN, one outside the image.
    require_finite(flow, "warp")
    down, right = (_along(side, pixels) for side in pixels.shape[-2:])
    grid = torch.stack(torch.meshgrid(right, down, indexing="xy"), 2)
    return functional.grid_sample(
        pixels, (grid + flow).clamp(-1, 1), padding_mode="border", align_corners=True
    )


def _along(side: int, like: Tensor) -> Float[Tensor, " n"]:
    """Return where the pixels of a side lie, from -1 to 1; one alone lies in the middle."""
    ends = (-1.0, 1.0) if side > 1 else (0.0, 0.0)
    return torch.linspace(*ends, side, dtype=like.dtype, device=like.device)
