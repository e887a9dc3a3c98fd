"""Show attacks: clean images, the same images stamped, and the difference times ten."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from benchmarks.attacks.base import Attack
from benchmarks.data.images import LabelledImages

PICTURED = 6
GAIN = 10
GAP = 2
ENLARGED = 2


def attack_picture(attack: Attack, images: LabelledImages) -> Image.Image:
    """Return a picture of three rows, one column an image."""
    clean = images.floats()
    stamped = attack.stamp(clean).detach()
    rows = (clean, stamped, (GAIN * (stamped - clean).abs()).clamp(0, 1))
    picture = torch.cat([_row(row) for row in rows], dim=1)[:, GAP:, GAP:]
    whole = Image.fromarray(_bytes(picture).permute(1, 2, 0).numpy())
    size = (whole.width * ENLARGED, whole.height * ENLARGED)
    return whole.resize(size, Image.Resampling.NEAREST)


def _row(pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "c rows columns"]:
    """Put images side by side on white, with a gap above and to the left of each."""
    padded = torch.nn.functional.pad(pixels, (GAP, 0, GAP, 0), value=1.0)
    return torch.cat(list(padded), dim=2)


def _bytes(pixels: Float[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    return (255 * pixels).round().to(torch.uint8)
