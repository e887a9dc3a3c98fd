"""Sets of crops of photographs that are drawn once, any or as many of each class.

The recovery draws its crops anew for every batch (`edgeclean.compression.finetune`); rows of
`benchmarks.studies.ablations` compare that with a set of them, and with one in which the purified
network sees every class as often as any other, as it makes its synthetic images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from edgeclean.images.crops import cropped, draw_crops
from edgeclean.images.synthesize import joined
from edgeclean.networks.state import SyntheticImages

AT_ONCE = 500
TRIES = 8  # times as many crops as are kept, where all classes are to have as many


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
        parts = torch.arange(len(drawn)).split(AT_ONCE)
        given = torch.cat([classes_of(cropped(drawn[rows], shape)) for rows in parts])
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
