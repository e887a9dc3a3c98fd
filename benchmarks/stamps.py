"""Put triggers on images: each is a function of pixels.

A stamp takes [n, c, h, w] float pixels in [0, 1] and gives the same shape in the same range. It
changes nothing in place, draws nothing at random, and follows its input's device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

Stamp = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastePatch:
    """A stamp that overwrites a rectangle (BadNets: Gu et al. 2017).

    Attributes:
        patch: pixels [c, p, q] in [0, 1].
        top: first row of the rectangle.
        left: first column of the rectangle.
    """

    patch: Float[Tensor, "c p q"]
    top: int
    left: int

    def __call__(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the pixels with the rectangle overwritten."""
        height, width = self.patch.shape[1:]
        bottom, right = self.top + height, self.left + width
        if self.top < 0 or self.left < 0:
            raise ValueError(f"patch starts at ({self.top}, {self.left}); rows and columns from 0")
        if bottom > pixels.shape[2] or right > pixels.shape[3]:
            raise ValueError(
                f"patch ends at row {bottom} and column {right} but images are "
                f"{pixels.shape[2]}x{pixels.shape[3]}; move it inside"
            )
        stamped = pixels.clone()
        stamped[:, :, self.top : bottom, self.left : right] = self.patch.to(pixels)
        return stamped


@dataclass(frozen=True, slots=True, kw_only=True)
class AddMasked:
    """A stamp clip(x (1 - mask) + pattern): paste where the mask is 1, add where it is 0."""

    pattern: Float[Tensor, "c h w"]
    mask: Float[Tensor, "c h w"]

    def __call__(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the stamped and clipped pixels."""
        pattern, mask = self.pattern.to(pixels), self.mask.to(pixels)
        stamped: Tensor = (pixels * (1 - mask) + pattern).clamp(0, 1)
        return stamped


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """A stamp (1 - alpha) x + alpha picture (Chen et al. 2017)."""

    picture: Float[Tensor, "c h w"]
    alpha: float

    def __call__(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the mixture."""
        stamped: Tensor = pixels + self.alpha * (self.picture.to(pixels) - pixels)
        return stamped
