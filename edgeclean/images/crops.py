"""Crops of ten photographs, which know nothing of any network: images that teach beside others.

Images that a network was inverted into lack what natural ones have. Crops of a single photograph
can teach a network much of what another knows (Asano & Saeed, ICLR 2023), and unrelated photographs
recover a pruned network better than inverted images do (DeepInversion, Yin et al., CVPR 2020).
What they earn beside synthetic images is a row of `benchmarks.studies.ablations`.
``photographs/SOURCES.md`` says whose the photographs are and on what terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, features
from torch import Tensor
from torch.nn import functional

from edgeclean.errors import ToolchainError

FOLDER = Path(__file__).parent / "photographs"
LEAST_AREA = 1 / 200  # of a photograph, in a crop; sizes between that and all of it are as likely
LEAST_SCALE = 0.6  # pixels of a photograph to one of a crop's: fewer would show nothing but blur
MOST_ASPECT = 4 / 3
MOST_ANGLE = math.pi / 6  # half of the crops are turned, by up to so much either way
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True, slots=True)
class Crops:
    """Places in photographs, each of which is drawn as one image.

    Attributes:
        photograph: the index of each crop's photograph.
        centre: row and column in its pixels.
        size: height and width in its pixels.
        angle: by which it is turned, in radians.
        mirrored: whether left and right are exchanged.
    """

    photograph: Int[Tensor, " n"]
    centre: Float[Tensor, "n 2"]
    size: Float[Tensor, "n 2"]
    angle: Float[Tensor, " n"]
    mirrored: Tensor

    def __len__(self) -> int:
        return len(self.photograph)

    def __getitem__(self, rows: Int[Tensor, " m"]) -> Crops:
        """Return the crops ``rows``, in their order."""
        return Crops(
            self.photograph[rows],
            self.centre[rows],
            self.size[rows],
            self.angle[rows],
            self.mirrored[rows],
        )


def require_photographs() -> None:
    """Refuse now what would end a run after minutes: a Pillow that cannot open the photographs.

    Raises:
        ToolchainError: it was built without WebP.
    """
    if not features.check("webp"):
        raise ToolchainError(
            "Pillow was built without WebP here, which the photographs that recovery sees are kept "
            "in; `pip install --force-reinstall --only-binary :all: pillow` brings one with it, "
            "and --no-photographs does without"
        )


@cache
def photographs() -> tuple[UInt8[Tensor, "3 h w"], ...]:
    """Return the photographs, in the order of their names."""
    pictures = []
    for path in sorted(FOLDER.glob("*.webp")):
        with Image.open(path, formats=("WEBP",)) as picture:
            pixels = np.array(picture.convert("RGB"))
        pictures.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return tuple(pictures)


def draw_crops(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Crops:
    """Draw the places of ``count`` crops for images of ``shape`` (channels, height, width)."""
    _, height, width = shape
    pictures = photographs()
    which = torch.randint(len(pictures), (count,), generator=generator)
    sides = torch.tensor([picture.shape[1:] for picture in pictures], dtype=torch.float32)[which]

    def uniform(*dimensions: int) -> Tensor:
        return torch.rand(*dimensions, generator=generator)

    area = sides.prod(1) * LEAST_AREA ** uniform(count)
    aspect = MOST_ASPECT ** (2 * uniform(count) - 1) * width / height
    size = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], 1)
    least = LEAST_SCALE * torch.tensor([height, width])
    size = torch.minimum(torch.maximum(size, least), sides)
    centre = size / 2 + uniform(count, 2) * (sides - size)
    angle = MOST_ANGLE * (2 * uniform(count) - 1) * (uniform(count) < 0.5)
    return Crops(which, centre, size, angle, uniform(count) < 0.5)


def cropped(crops: Crops, shape: tuple[int, int, int]) -> Float[Tensor, "n c h w"]:
    """Return the crops as images of ``shape``, in [0, 1].

    One channel is the luminance; of a number that is neither one nor three, every channel is.
    """
    channels, height, width = shape
    images = torch.empty(len(crops), 3, height, width)
    scale = (crops.size / torch.tensor([height, width])).amax(1)
    levels = scale.clamp_min(1).log2().round().long()
    for index, picture in enumerate(photographs()):
        for level in levels[crops.photograph == index].unique().tolist():
            rows = ((crops.photograph == index) & (levels == level)).nonzero().flatten()
            shrunk = _shrunk(index, level)[None]
            sides = picture.shape[1], picture.shape[2]
            grid = _sampling_grid(crops[rows], sides, (height, width))
            images[rows] = functional.grid_sample(
                shrunk.expand(len(rows), -1, -1, -1),
                grid,
                padding_mode="reflection",
                align_corners=False,
            )
    images = torch.where(crops.mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    if channels != 3:
        grey = (images * torch.tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
        images = grey.expand(-1, channels, -1, -1)
    return images.clamp(0, 1).contiguous()


@cache  # 50 MB in all; to make them anew for every batch would take longer than to cut them
def _shrunk(index: int, halvings: int) -> Float[Tensor, "3 a b"]:
    """Return a photograph in [0, 1], halved as often as its crop is: nothing flickers in it."""
    if halvings == 0:
        return photographs()[index].float() / 255
    return functional.avg_pool2d(_shrunk(index, halvings - 1)[None], 2, ceil_mode=True)[0]


def _sampling_grid(
    crops: Crops, picture: tuple[int, int], shape: tuple[int, int]
) -> Float[Tensor, "n h w 2"]:
    """Return where each pixel of each crop lies in its photograph, from -1 to 1."""
    height, width = shape
    down, right = torch.meshgrid(
        (torch.arange(height) + 0.5) / height - 0.5,
        (torch.arange(width) + 0.5) / width - 0.5,
        indexing="ij",
    )
    rows = down * crops.size[:, 0].view(-1, 1, 1)
    columns = right * crops.size[:, 1].view(-1, 1, 1)
    cosine, sine = (f(crops.angle).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    turned = torch.stack([sine * rows + cosine * columns, cosine * rows - sine * columns], 3)
    place = turned + crops.centre.flip(1).view(-1, 1, 1, 2)
    return 2 * place / torch.tensor([picture[1], picture[0]]) - 1
