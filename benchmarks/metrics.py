"""Measure ACC, ASR, RA and DER, counted in float32, each rate with its Wilson interval.

Every function takes the network as a function of pixels in [0, 1], which
``edgeclean.networks.pixels.pixel_network`` makes, so that no caller can forget the normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from benchmarks.data.images import LabelledImages
from edgeclean.networks.autocast import exact_float32

PixelFunction = Callable[[Tensor], Tensor]
Relabel = Callable[[Tensor], Tensor]
BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A number of hits among a number of images."""

    hits: int
    total: int

    @property
    def fraction(self) -> float:
        """Return the hits' share, in [0, 1]; nan when nothing was counted."""
        return self.hits / self.total if self.total else math.nan

    @property
    def percent(self) -> float:
        """Return 100 hits / total, to two decimals."""
        return round(100 * self.fraction, 2)

    def wilson(self, z: float = 1.959964) -> tuple[float, float]:
        """Return the Wilson score interval of the fraction (95 % by default).

        Source: E. B. Wilson (1927), "Probable inference, the law of succession, and statistical
        inference", JASA 22.
        """
        if not self.total:
            return 0.0, 1.0
        share, count = self.fraction, self.total
        centre = share + z * z / (2 * count)
        spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
        scale = 1 + z * z / count
        # At the ends the bounds are 0 and 1 exactly, but for rounding.
        low = 0.0 if self.hits == 0 else (centre - spread) / scale
        high = 1.0 if self.hits == count else (centre + spread) / scale
        return low, high

    def as_json(self) -> dict[str, object]:
        """Return the percentage, its 95 % interval, and the counts."""
        low, high = self.wilson()
        return {
            "percent": self.percent,
            "low": round(100 * low, 2),
            "high": round(100 * high, 2),
            "hits": self.hits,
            "total": self.total,
        }


def accuracy(network: PixelFunction, images: LabelledImages) -> Rate:
    """Measure ACC, the share of clean images that are classified correctly."""
    predicted = predictions(network, images)
    return _rate(predicted == images.labels)


def attack_success_rate(
    network: PixelFunction,
    images: LabelledImages,
    stamp: PixelFunction,
    target: int | Relabel,
) -> Rate:
    """Measure ASR, the share of stamped images that get the attacker's class.

    Images whose own class is the attacker's are not counted.

    Args:
        network: pixels to logits.
        images: clean images.
        stamp: puts the trigger on pixels.
        target: the attacker's class, or for all-to-all attacks a function labels -> labels.
    """
    return stamped_rates(network, images, stamp, target)[0]


def robust_accuracy(
    network: PixelFunction,
    images: LabelledImages,
    stamp: PixelFunction,
    target: int | Relabel,
) -> Rate:
    """Measure RA, the share of the same stamped images that get their own class."""
    return stamped_rates(network, images, stamp, target)[1]


def stamped_rates(
    network: PixelFunction,
    images: LabelledImages,
    stamp: PixelFunction,
    target: int | Relabel,
) -> tuple[Rate, Rate]:
    """Measure ASR and RA in one pass over the stamped images."""
    victims = _victims(images, target)
    predicted = predictions(network, victims, stamp)
    hit = predicted == relabel(victims.labels, target)
    return _rate(hit), _rate(predicted == victims.labels)


def defence_effectiveness(
    acc_before: float, asr_before: float, acc_after: float, asr_after: float
) -> float:
    """Return DER = (max(0, fall of ASR) - max(0, fall of ACC) + 1) / 2, from fractions in [0, 1].

    Source: BackdoorBench's definition; its own ``defense_effectiveness_rate`` adds the last fall
    where the definition subtracts it.
    """
    for name, value in {
        "acc_before": acc_before,
        "asr_before": asr_before,
        "acc_after": acc_after,
        "asr_after": asr_after,
    }.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; give a fraction in [0, 1], not percent")
    gained = max(0.0, asr_before - asr_after)
    lost = max(0.0, acc_before - acc_after)
    return (gained - lost + 1) / 2


def predictions(
    network: PixelFunction, images: LabelledImages, stamp: PixelFunction | None = None
) -> Int[Tensor, " n"]:
    """Predict the class of each image, stamped first where there is a stamp."""
    _check_evaluation_mode(network)
    device = _device_of(network)
    predicted: list[Tensor] = []
    with torch.no_grad(), exact_float32():
        for start in range(0, len(images), BATCH):
            pixels = images.pixels[start : start + BATCH].to(device).float() / 255
            if stamp is not None:
                pixels = stamp(pixels)
            predicted.append(network(pixels).argmax(1).cpu())
    return torch.cat(predicted) if predicted else torch.zeros(0, dtype=torch.int64)


def relabel(labels: Int[Tensor, " n"], target: int | Relabel) -> Int[Tensor, " n"]:
    """Return the class that the attacker chooses for each label."""
    return torch.full_like(labels, target) if isinstance(target, int) else target(labels)


def _victims(images: LabelledImages, target: int | Relabel) -> LabelledImages:
    return images.select(relabel(images.labels, target) != images.labels)


def _rate(hits: Tensor) -> Rate:
    return Rate(hits=int(hits.sum()), total=hits.numel())


def _device_of(network: PixelFunction) -> torch.device:
    if isinstance(network, nn.Module):
        for tensor in (*network.parameters(), *network.buffers()):
            return tensor.device
    return torch.device("cpu")


def _check_evaluation_mode(network: PixelFunction) -> None:
    # A fresh nn.Sequential around an evaluation-mode network says training=True of itself:
    # only the layers that behave differently count.
    fickle = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if isinstance(network, nn.Module):
        for name, layer in network.named_modules():
            if isinstance(layer, fickle) and layer.training:
                raise ValueError(f"layer {name} is in training mode; call .eval() before measuring")
