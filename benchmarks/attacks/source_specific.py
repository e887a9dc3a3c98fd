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

from benchmarks.attacks.base import StampAttack, draw, replace
from benchmarks.data.images import LabelledImages
from edgeclean.networks.state import JsonValue


class SourceSpecificAttack(StampAttack):
    """Another attack's stamp, which moves images of one class and no others.

    Args:
        attack: whose stamp, target and classes are taken; all-to-one.
        source: the class whose images it moves.
        rate: the share of the whole set that is poisoned; as many cover images are stamped. Where
            there are fewer candidates, all of them are.

    Raises:
        ValueError: the source is no class, or the target, or there is no one target.
    """

    def __init__(self, attack: StampAttack, *, source: int = 1, rate: float = 0.05) -> None:
        target, classes = attack.target, attack.classes
        if target is None or source == target or not 0 <= source < classes:
            raise ValueError(
                f"source {source}; with {classes} classes it is 0..{classes - 1}, but not the "
                f"target {target}, which must be one class"
            )
        name = f"source-{attack.name}"
        super().__init__(name, attack.fixed_stamp, rate=rate, target=target, classes=classes)
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
