"""WaNet warps images smoothly as its trigger, and is trained with its noise mode.

Source: Nguyen and Tran (2021), "WaNet: imperceptible warping-based backdoor attack". Deviation:
the batch is cropped and mirrored before it is warped, not also afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.attacks.base import Attack, PixelFunction, facts_with
from edgeclean.networks.state import JsonValue


@dataclass(frozen=True, slots=True, kw_only=True)
class WarpSettings:
    """Settings of the warp and of its noise mode.

    Attributes:
        strength: strength of the warp, in pixels times two over the height.
        cells: side of the coarse random grid that is enlarged smoothly to the image.
        noise_ratio: images with a *randomly disturbed* warp and their own label, for each poisoned
            image of a batch: the network must learn the exact warp.
        seed: seed of the warp.
    """

    strength: float = 0.5
    cells: int = 4
    noise_ratio: int = 2
    seed: int = 0


class WaNet(Attack):
    """An attack with a fixed smooth warp.

    Args:
        classes: number of classes.
        size: height and width of the images.
        target: the attacker's class; None for all-to-all.
        rate: share of each batch that is poisoned.
        settings: settings of the warp.
    """

    def __init__(
        self,
        *,
        classes: int,
        size: tuple[int, int],
        target: int | None = 0,
        rate: float = 0.1,
        settings: WarpSettings | None = None,
    ) -> None:
        name = "wanet" if target is not None else "wanet-a2a"
        super().__init__(name, rate=rate, target=target, classes=classes)
        self._settings = settings = settings or WarpSettings()
        self.noise_ratio, self.size = settings.noise_ratio, size
        if rate * (1 + self.noise_ratio) > 1:
            raise ValueError(
                f"rate {rate} with noise ratio {self.noise_ratio} needs more than the whole batch; "
                f"rate x (1 + noise ratio) must be at most 1"
            )
        self.grid = warp_grid(size, settings.strength, settings.cells, settings.seed)

    def facts(self) -> dict[str, JsonValue]:
        """Return the attack's facts with the warp's settings."""
        return facts_with(self, self._settings)

    def stamp(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the images warped."""
        return _warp(pixels, self.grid.to(pixels))

    def batch_loss(
        self,
        network: PixelFunction,
        pixels: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        smoothing: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the cross-entropy over warped, noisily warped and plain images."""
        count = max(1, round(self.rate * len(labels)))
        noisy = slice(count, count * (1 + self.noise_ratio))
        mixed, targets = pixels.clone(), labels.clone()
        mixed[:count] = self.stamp(pixels[:count])
        mixed[noisy] = self._disturbed(pixels[noisy], generator)
        targets[:count] = self.relabel(labels[:count])
        return functional.cross_entropy(network(mixed), targets, label_smoothing=smoothing)

    def _disturbed(
        self, pixels: Float[Tensor, "n c h w"], generator: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        height, width = self.size
        noise = torch.rand(len(pixels), height, width, 2, generator=generator) * 2 - 1
        grids = self.grid + noise / height
        return _warp(pixels, grids.clamp(-1, 1).to(pixels))


def warp_grid(
    size: tuple[int, int], strength: float, cells: int, seed: int
) -> Float[Tensor, "1 h w 2"]:
    """Return the source of each pixel in grid_sample's coordinates: the identity plus a warp."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 2, cells, cells, generator=generator) * 2 - 1
    coarse = coarse / coarse.abs().mean()
    warp = functional.interpolate(coarse, size=size, mode="bicubic", align_corners=True)
    rows, columns = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    identity = torch.stack((columns, rows), dim=2)[None]
    grid: Tensor = (identity + strength * warp.permute(0, 2, 3, 1) / height).clamp(-1, 1)
    return grid


def _warp(
    pixels: Float[Tensor, "n c h w"], grid: Float[Tensor, "m h w 2"]
) -> Float[Tensor, "n c h w"]:
    grid = grid.expand(len(pixels), -1, -1, -1)
    warped = functional.grid_sample(pixels, grid, align_corners=True)
    return warped.clamp(0, 1)
