"""Crops of a dozen photographs, which know nothing of any network: tried as images that teach.

Inverted images lack what natural ones have. Crops of a single photograph can teach a network much
of what another knows (Asano & Saeed, ICLR 2023), and unrelated photographs recover a pruned network
better than inverted images do (DeepInversion, Yin et al., CVPR 2020). What they earn here beside
synthetic images is a row of `benchmarks.studies.ablations`, of one network so far, which is too
little for a default.
``photographs/SOURCES.md`` says whose the photographs are and on what terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional

from edgeclean.images.synthesize import joined
from edgeclean.networks.state import SyntheticImages

FOLDER = Path(__file__).parent / "photographs"
AT_ONCE = 500
LEAST_AREA = 1 / 200  # of a photograph, in a crop; sizes between that and all of it are as likely
LEAST_SCALE = 0.6  # pixels of a photograph to one of a crop's: fewer would show nothing but blur
MOST_ASPECT = 4 / 3
TRIES = 8  # times as many crops as are kept, where all classes are to have as many
MOST_ANGLE = math.pi / 6  # half of the crops are turned, by up to so much either way
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def with_crops(
    images: SyntheticImages,
    shape: tuple[int, int, int],
    seed: int,
    classes_of: Callable[[Tensor], Int[Tensor, " n"]] | None = None,
) -> SyntheticImages:
    """Return the images with as many crops behind them, which have no label.

    With ``classes_of``, which says what a network takes each of some pixels for, crops are drawn
    until every class has as many, as far as `TRIES` times as many crops hold them.
    """
    generator = torch.Generator().manual_seed(seed)
    if classes_of is None:
        pixels = cropped(draw_crops(len(images), shape, generator), shape)
    else:
        drawn = draw_crops(TRIES * len(images), shape, generator)
        given = torch.cat([classes_of(cropped(drawn[rows], shape)) for rows in _parts(len(drawn))])
        pixels = cropped(drawn[balanced(given, len(images))], shape)
    crops = SyntheticImages(
        pixels=pixels, labels=torch.zeros(len(pixels), dtype=torch.int64), origin="photographs"
    )
    return joined(images, crops)


def balanced(given: Int[Tensor, " n"], count: int) -> Int[Tensor, " m"]:
    """Return ``count`` of the places of some classes, in turns: of each class as many as it has.

    The first of every class come first, then the second of every class that has one, and so on.
    """
    nth = torch.zeros_like(given)
    for one in given.unique():
        own = given == one
        nth[own] = torch.arange(int(own.sum()))
    return nth.sort(stable=True).indices[:count]


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
            shrunk = _shrunk(picture, level)
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


def _parts(count: int) -> Iterator[Int[Tensor, " m"]]:
    yield from torch.arange(count).split(AT_ONCE)


def _shrunk(picture: UInt8[Tensor, "3 h w"], halvings: int) -> Float[Tensor, "1 3 a b"]:
    """Return a photograph in [0, 1], halved as often as its crop is: nothing flickers in it."""
    pixels = picture.float()[None] / 255
    for _ in range(halvings):
        pixels = functional.avg_pool2d(pixels, 2, ceil_mode=True)
    return pixels


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
