"""BadNets puts a small patch in a corner, all-to-one or all-to-all.

Source: Gu, Dolan-Gavitt and Garg (2017), "BadNets: identifying vulnerabilities in the machine
learning model supply chain".
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from benchmarks.attacks.base import StampAttack
from benchmarks.attacks.patterns import checker_patch
from benchmarks.stamps import PastePatch

YELLOW, BLUE = (1.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def badnets(
    *,
    classes: int,
    size: tuple[int, int],
    target: int | None = 0,
    rate: float = 0.1,
    patch: Float[Tensor, "c p p"] | None = None,
    margin: int = 0,
) -> StampAttack:
    """Return BadNets with ``patch`` (a 3x3 checker by default) near the bottom right corner.

    Args:
        classes: number of classes.
        size: height and width of the images.
        target: the attacker's class; None for all-to-all.
        rate: poisoned share of the training set.
        patch: pixels [c, p, p] in [0, 1].
        margin: pixels left free below and to the right.
    """
    patch = checker_patch(3, YELLOW, BLUE) if patch is None else patch
    stamp = PastePatch(
        patch=patch,
        top=size[0] - patch.shape[1] - margin,
        left=size[1] - patch.shape[2] - margin,
    )
    name = "badnets" if target is not None else "badnets-a2a"
    return StampAttack(name, stamp, rate=rate, target=target, classes=classes)
