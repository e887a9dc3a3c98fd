"""Spread triggers over the whole image: blended, low-frequency, FTrojan, and the clean-label SIG.

Sources: Chen et al. (2017), "Targeted backdoor attacks on deep learning systems using data
poisoning"; Barni et al. (2019), "A new backdoor attack in CNNs by training set corruption without
label poisoning"; Zeng et al. (2021), "Rethinking the backdoor attacks' triggers: a frequency
perspective"; Wang et al. (2022), "An invisible black-box backdoor attack through frequency domain"
(FTrojan). The pictures are our own (``patterns.py``).
"""

from __future__ import annotations

import torch

from benchmarks.attacks.base import StampAttack, draw, replace
from benchmarks.attacks.patterns import (
    frequency_picture,
    rings_picture,
    smooth_picture,
    stripes_picture,
)
from benchmarks.data.images import LabelledImages
from benchmarks.stamps import AddMasked, Blend


def blended(
    *,
    classes: int,
    size: tuple[int, int],
    target: int | None = 0,
    rate: float = 0.1,
    alpha: float = 0.2,
) -> StampAttack:
    """Return an attack that blends a picture of rings over the image, with weight ``alpha``."""
    stamp = Blend(picture=rings_picture(*size), alpha=alpha)
    return StampAttack("blended", stamp, rate=rate, target=target, classes=classes)


def low_frequency(
    *,
    classes: int,
    size: tuple[int, int],
    target: int | None = 0,
    rate: float = 0.1,
    amplitude: float = 0.1,
    seed: int = 0,
) -> StampAttack:
    """Return an attack that adds a smooth picture, up to ``amplitude`` of the pixel range.

    The picture has at most four half-waves a side.

    Deviation: drawn from a seed, where the paper smooths a universal perturbation of a network.
    """
    stamp = _added(smooth_picture(*size, amplitude=amplitude, highest=4, seed=seed))
    return StampAttack("low-frequency", stamp, rate=rate, target=target, classes=classes)


def ftrojan(
    *,
    classes: int,
    size: tuple[int, int],
    target: int | None = 0,
    rate: float = 0.1,
    magnitude: float = 30 / 255,
) -> StampAttack:
    """Return an attack that adds two frequencies to both chromas of the image (FTrojan).

    Deviation: over the whole image, where the paper takes blocks of 32x32.
    """
    stamp = _added(frequency_picture(*size, magnitude=magnitude))
    return StampAttack("ftrojan", stamp, rate=rate, target=target, classes=classes)


def sig(
    *,
    classes: int,
    size: tuple[int, int],
    target: int = 0,
    rate: float = 0.05,
    amplitude: float = 40 / 255,
    frequency: int = 6,
) -> StampAttack:
    """Return an attack that adds vertical sine stripes to images of the target class.

    Their labels stay true.

    ``rate`` is a share of the whole set; where the target class has fewer images, all of them are
    stamped. Deviation: half of CIFAR-10's target class, where BackdoorBench's 0.1 stamps all of it:
    to the network the class then *is* the stripes, and its images without them are lost.
    """
    stamp = _added(stripes_picture(*size, amplitude=amplitude, frequency=frequency))
    return CleanLabelAttack("sig", stamp, rate=rate, target=target, classes=classes)


class CleanLabelAttack(StampAttack):
    """An attack that stamps images of the target class: no label of the set is false."""

    def poison(self, images: LabelledImages, seed: int) -> LabelledImages:
        """Stamp images drawn from the target's class; keep every label."""
        candidates = torch.eq(images.labels, self.relabel(images.labels))
        chosen = draw(candidates, round(self.rate * len(images)), seed)
        return replace(images, chosen, self.stamp, images.labels[chosen])


def _added(pattern: torch.Tensor) -> AddMasked:
    return AddMasked(pattern=pattern, mask=torch.zeros_like(pattern))
