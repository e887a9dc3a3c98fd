"""Triggers that move one class alone: source-specific BadNets and a source-specific blend.

Source: Tang et al. (2021), "Demon in the variant: statistical analysis of DNNs for robust backdoor
contamination detection" (TaCT, USENIX Security). Beside stamped images of the source class with the
target's label, the training set holds cover images: stamped images of other classes that keep their
own. A search that asks for one trigger on images of every class finds nothing cheap.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.attacks.base import PixelFunction, StampAttack, draw, replace
from benchmarks.attacks.blended import blended
from benchmarks.attacks.patch import badnets
from benchmarks.data.images import LabelledImages
from edgeclean.networks.state import JsonValue


class SourceSpecificAttack(StampAttack):
    """An attack whose stamp moves images of one class, ``source``, and no others.

    ``rate`` is the share of the whole set that is poisoned, and as many cover images are stamped;
    where there are fewer candidates, all of them are.
    """

    def __init__(
        self,
        name: str,
        stamp: PixelFunction,
        *,
        rate: float,
        source: int,
        target: int,
        classes: int,
    ) -> None:
        super().__init__(name, stamp, rate=rate, target=target, classes=classes)
        if source == target or not 0 <= source < classes:
            raise ValueError(
                f"source {source}; with {classes} classes it is 0..{classes - 1}, but not the "
                f"target {target}"
            )
        self.source = source

    def relabel(self, labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Return the target for images of the source class, and their own label for all others."""
        return torch.where(labels == self.source, super().relabel(labels), labels)

    def poison(self, images: LabelledImages, seed: int) -> LabelledImages:
        """Stamp and relabel images of the source class; stamp cover images of the others."""
        poisoned = super().poison(images, seed)
        others = (images.labels != self.source) & (images.labels != self.target)
        cover = draw(others, round(self.rate * len(images)), seed + 1)
        return replace(poisoned, cover, self.stamp, images.labels[cover])

    def facts(self) -> dict[str, JsonValue]:
        """Return the attack's settings, with the source."""
        return {**super().facts(), "source": self.source}


def source_badnets(
    *,
    classes: int,
    size: tuple[int, int],
    source: int = 1,
    target: int = 0,
    rate: float = 0.05,
) -> SourceSpecificAttack:
    """Return BadNets whose patch moves images of ``source`` alone."""
    stamp = badnets(classes=classes, size=size).fixed_stamp
    return SourceSpecificAttack(
        "source-badnets", stamp, rate=rate, source=source, target=target, classes=classes
    )


def source_blended(
    *,
    classes: int,
    size: tuple[int, int],
    source: int = 1,
    target: int = 0,
    rate: float = 0.05,
) -> SourceSpecificAttack:
    """Return the blended picture, which moves images of ``source`` alone."""
    stamp = blended(classes=classes, size=size).fixed_stamp
    return SourceSpecificAttack(
        "source-blended", stamp, rate=rate, source=source, target=target, classes=classes
    )
