"""The all-to-all search: one small stamp that sends every class to another class of its own.

Such a backdoor (BadNets' second attack, Gu et al. 2017: label y becomes y + 1) has no single
target, so no class is cheaper than the others. It shows in the map of classes: the least
stamp that makes images leave their class sends each class to one other, nearly a permutation. On a
network without such a backdoor, the same search ends in one or two classes for all images.

With two or three classes a stamp that moves a single class is most of a permutation already, so the
map counts by the class that moves least (`FEW`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from edgeclean.backdoor.bank import IN_FULL, Bank, BankScore
from edgeclean.backdoor.families import Family
from edgeclean.backdoor.few_classes import FEW
from edgeclean.backdoor.gradient import (
    ELSEWHERE,
    Evidence,
    Found,
    GradientSettings,
    Slot,
    cheapest_triggers,
    given_classes,
)

BANK_TRIES = 16  # candidates of the bank whose map is judged
STARTS = 4  # independent starts of each family, searched together
SUCCESS = 0.8  # published all-to-all attacks reach less than all-to-one attacks do
FEWEST_IMAGES = 3  # of a class, to decide where it goes
FEWEST_CLASSES = 10  # of many: as many as those maps have that the threshold was set on
# Suspected from here on. Six published networks without such a backdoor score 0.13 to 0.18
# (benchmarks/results/compress-zoo.json); two that were trained with it score 0.8 and 0.6
# (badnets-a2a and input-aware-a2a in benchmarks/results/cpu.md).
MAP_SCORE = 0.5


@dataclass(frozen=True, slots=True)
class ClassMap:
    """The classes that a stamp sends each class to.

    Attributes:
        shares: of each class's images but one, the share that goes where that one goes, to the
            class's most frequent other class; 0 for classes with fewer than three images.
        different: the number of different destinations over that of the classes with images; 1
            for a permutation, near 0 where nearly all classes go to the same one.
        score: mean share of the classes with images, times ``different``; with at most three
            classes the least share of all, so that one class which stays leaves nothing.
        mapped: the classes with images; none where they are too few to tell.
    """

    shares: tuple[float, ...]
    different: float
    score: float
    mapped: tuple[int, ...]


def class_map(own: Int[Tensor, " n"], given: Int[Tensor, " n"], classes: int) -> ClassMap:
    """Return the map from the classes of images to those that they are given with the stamp on.

    One image names a class's destination and the others confirm it: three images that scatter
    would else count as a third of a map.
    """
    shares, destinations, mapped = [], [], []
    for source in range(classes):
        arrived = given[own == source]
        counts = torch.bincount(arrived, minlength=classes)
        counts[source] = 0
        if len(arrived) < FEWEST_IMAGES:
            shares.append(0.0)
            continue
        shares.append(max(0.0, (float(counts.max()) - 1) / (len(arrived) - 1)))
        destinations.append(int(counts.argmax()))
        mapped.append(source)
    if len(destinations) < (FEWEST_CLASSES if classes > IN_FULL else 1):
        return ClassMap(tuple(shares), 0.0, 0.0, ())
    different = len(set(destinations)) / len(destinations)
    together = min(shares) if classes <= FEW else sum(shares) / len(destinations)
    return ClassMap(tuple(shares), different, together * different, tuple(mapped))


def can_be_mapped(evidence: Evidence) -> bool:
    """Return whether as many classes have images as it takes to draw a map of many classes."""
    return int((evidence.predictions.bincount() >= FEWEST_IMAGES).sum()) >= FEWEST_CLASSES


def stamps_of(
    module: nn.Module,
    evidence: Evidence,
    family: type[Family],
    steps: int,
    generator: torch.Generator,
) -> list[Found]:
    """Search a family's least stamps that make images leave their class, from several starts."""
    slots = [Slot(ELSEWHERE)] * STARTS
    settings = GradientSettings(steps=steps, success=SUCCESS)
    return cheapest_triggers(module, evidence, slots, family, settings, generator)


def bank_stamps(evidence: Evidence, score: BankScore[Bank] | None) -> list[Found]:
    """Return the bank's candidates that move most images; they also work on masked gradients."""
    if score is None:
        return []
    moved, (height, width) = score.moved, evidence.pixels.shape[-2:]
    area = (score.bank.candidates[:, 0] * score.bank.candidates[:, 1]).tolist()
    return [
        Found(
            Slot(ELSEWHERE),
            float(area[row]),
            float(moved[row]),
            score.bank.trigger(row, height, width),
        )
        for row in moved.topk(min(BANK_TRIES, len(moved))).indices.tolist()
    ]


def nearest_to_permutation(
    module: nn.Module, evidence: Evidence, stamps: list[Found], classes: int
) -> tuple[Found, ClassMap]:
    """Return the stamp with the highest score of its map, judged on all images; none of none."""
    nothing = Found(Slot(ELSEWHERE), math.inf, 0.0, None)
    stamps = stamps or [nothing]
    results = [(found, _map_of(module, evidence, found, classes)) for found in stamps]
    return max(results, key=lambda result: result[1].score)


def _map_of(module: nn.Module, evidence: Evidence, found: Found, classes: int) -> ClassMap:
    if found.trigger is None:
        return ClassMap((0.0,) * classes, 0.0, 0.0, ())
    given = given_classes(module, evidence, found.slot, found.trigger)
    return class_map(evidence.predictions[evidence.usable(found.slot)], given, classes)
