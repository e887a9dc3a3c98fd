"""Judge the searches of a network of two or three classes, whose own costs are no yardstick.

The rule of many classes asks how far one class lies from the others. Of two classes there is one
other, and nature makes two classes unequal. So two prices make the yardstick: what one stamp for
*all* images costs towards the other class, and what a stamp for a *single* image costs there. A
boundary that nature drew lies elsewhere for every image, so that the stamp for all costs several
times the other; a trigger moves them all at the price of one. A class is suspected where its stamp
for all images is plainly cheaper than the geometric mean of those two prices (`FEW_THRESHOLD`).

The rule was chosen on half of the networks of ``benchmarks/studies/few_classes.py``; its false
alarms and misses are those of the other half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn

from edgeclean.backdoor.families import AdditiveFamily, Family, MaskedFamily
from edgeclean.backdoor.gradient import (
    Evidence,
    Found,
    GradientSettings,
    Slot,
    cheapest_triggers,
)
from edgeclean.backdoor.triggers import AdditiveTrigger, MaskedTrigger, Trigger

FEW = 3  # classes at most, that are judged by this rule
# Of the networks of the half that the rule was not chosen on, by their number of classes: those
# without a backdoor and how many of them were suspected, those with one and how many were missed
# (benchmarks/results/few-classes.json).
MEASURED = {2: (6, 0, 4, 1), 3: (4, 0, 3, 1)}
FEW_THRESHOLD = 1.0  # above all clean networks of the half that it was chosen on
LARGEST_PATCH = 1 / 20  # of an image: a mask over more is no small patch
SINGLES = 8  # images of each class's search that are tried alone


def single_image_costs(
    module: nn.Module,
    evidence: Evidence,
    classes: int,
    family: type[Family],
    steps: int,
    generator: torch.Generator,
) -> tuple[float, ...]:
    """Return, for each class, the median cost of sending one image there; infinite without any.

    Args:
        module: a function of pixels for inference.
        evidence: images with the module's predictions.
        classes: the number of classes.
        family: the kind of stamp.
        steps: Adam steps of the search.
        generator: draws up to eight images for each class, and the starts.
    """
    slots = []
    for target in range(classes):
        usable = evidence.usable(Slot(target)).nonzero().flatten()
        drawn = usable[torch.randperm(len(usable), generator=generator)[:SINGLES]]
        slots += [Slot(target, image=image) for image in drawn.tolist()]
    if not slots:
        return (math.inf,) * classes
    alone = GradientSettings(steps=steps, batch_size=1)
    found = cheapest_triggers(module, evidence, slots, family, alone, generator)
    return tuple(
        median([one.cost for one in found if one.slot.target == target] or [math.inf])
        for target in range(classes)
    )


def caveat(classes: int) -> str | None:
    """Return what a reader must know of the judgement of so few classes; None of more."""
    if classes not in MEASURED:
        return None
    harmless, alarms, attacked, missed = MEASURED[classes]
    return (
        f"A network of {classes} classes is judged by a rule of its own, with little to compare "
        f"with. Measured on small networks: of {harmless} without a backdoor it suspected "
        f"{alarms}, of {attacked} with one it missed {missed}."
    )


def few_class_scores(
    costs: Sequence[float], alone: Sequence[float], floor: float
) -> tuple[float, ...]:
    """Return by how much a class's stamp for all images is cheaper than the other classes' prices.

    Score c is log(yardstick / cost_c) / ``floor``. The yardstick of one other class is the
    geometric mean of what its own stamp for all images costs and what the median single image does;
    that of several is the least. Without a
    cost, or without a yardstick, the score is 0.

    Args:
        costs: the cost of the stamp for all images, of each class.
        alone: the median cost of single images (`single_image_costs`), of each class.
        floor: the unit of the scores, in logarithms.
    """
    prices = [math.sqrt(cost * one) for cost, one in zip(costs, alone, strict=True)]
    scores = []
    for target, cost in enumerate(costs):
        yardstick = min(price for other, price in enumerate(prices) if other != target)
        known = math.isfinite(cost) and math.isfinite(yardstick)
        scores.append(math.log(max(yardstick, 1e-6) / max(cost, 1e-6)) / floor if known else 0.0)
    return tuple(scores)


def as_cheap_as_one_way(
    module: nn.Module,
    evidence: Evidence,
    stamps: Sequence[Found],
    classes: int,
    steps: int,
    generator: torch.Generator,
) -> list[Found]:
    """Return the stamps that cost no more than the least stamps towards each class, together.

    Whatever moves all images of few classes somewhere else is most of a permutation, and a mask
    over half of the image does so on any network. A stamp that was trained to does it for less
    than one stamp for each way.

    Args:
        module: a function of pixels for inference.
        evidence: images with the module's predictions.
        stamps: patches and additive stamps, with their costs.
        classes: the number of classes.
        steps: Adam steps of the searches one way.
        generator: of their starts.
    """
    kinds: tuple[tuple[type[Family], type[Trigger]], ...] = (
        (MaskedFamily, MaskedTrigger),
        (AdditiveFamily, AdditiveTrigger),
    )
    kept: list[Found] = []
    for family, kind in kinds:
        slots = [Slot(target) for target in range(classes)]
        settings = GradientSettings(steps=steps)
        one_way = cheapest_triggers(module, evidence, slots, family, settings, generator)
        most = sum(found.cost for found in one_way if math.isfinite(found.cost))
        kept += [one for one in stamps if isinstance(one.trigger, kind) and one.cost <= most]
    return kept
