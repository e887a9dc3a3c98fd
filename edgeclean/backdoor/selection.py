"""Choose the classes that gradients search a trigger towards, where there are too many for all.

A search towards each of a thousand classes would cost a hundred times what it costs for ten. So the
network names the classes itself, by searches that ask for none and cost the same however many there
are, and only those are searched, beside others drawn at random that show what is usual:

* of the bank's candidates, tried on all classes at once, the smallest that works;
* of each family, a few stamps that send images together, to whichever class of their share of them
  that comes to be (`gradient.TOGETHER`), the cheapest first;
* of the last layer, the largest weights of a class.

What was not searched is not quiet: another class may have a trigger that none of these found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from edgeclean.backdoor.bank import IN_FULL, Bank, BankScore
from edgeclean.backdoor.families import Family
from edgeclean.backdoor.gradient import (
    TOGETHER,
    Evidence,
    GradientSettings,
    Slot,
    cheapest_triggers,
    given_classes,
    sink_of,
)

MOST_NAMED = 4  # of the classes that are searched; the others are drawn at random
STARTS = 4  # of each family's stamps that send images together
SUCCESS = 0.8  # of such a stamp; it need not be perfect to name its class
SINK_IMAGES = 256  # that show where a stamp sends them
WORKS = 0.9  # success of a candidate of the bank, on the images that it was scored on
LAST_LAYER = "last layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedClass:
    """A class that the network named, and what it was named by."""

    target: int
    by: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The classes that gradients search triggers towards.

    Attributes:
        classes: the number of the network's classes.
        named: the classes that stood out before the search, the first named first.
        drawn: the classes that they are compared with, drawn at random from the others; all
            classes where all are searched.
    """

    classes: int
    named: tuple[NamedClass, ...]
    drawn: tuple[int, ...]

    @classmethod
    def of_all(cls, classes: int) -> Selection:
        """Return the selection of every class, none of which was named."""
        return cls(classes=classes, named=(), drawn=tuple(range(classes)))

    @property
    def searched(self) -> tuple[int, ...]:
        """The classes, named and drawn, in rising order."""
        return tuple(sorted({*(one.target for one in self.named), *self.drawn}))

    @property
    def is_whole(self) -> bool:
        """Whether every class is searched."""
        return len(self.searched) == self.classes

    @property
    def in_words(self) -> str:
        """What was searched and, above all, what was not."""
        if self.is_whole:
            return f"gradients searched triggers to each of the {self.classes} classes"
        names = "; ".join(f"{one.target} by {', '.join(one.by)}" for one in self.named) or "none"
        return (
            f"gradients searched triggers to {len(self.searched)} of the {self.classes:,} classes: "
            f"those that stood out before ({names}), and {len(self.drawn)} drawn at random to "
            f"compare them with. The other {self.classes - len(self.searched):,} were not searched "
            "by gradients: only the banks of patches and gratings were tried on them, and stamps "
            "that send images to any one class"
        )

    def summary(self) -> dict[str, Any]:
        """Return the selection as JSON values."""
        return {
            "named": [{"target": one.target, "by": list(one.by)} for one in self.named],
            "drawn": list(self.drawn),
            "says": self.in_words,
        }


def selection(
    named: Mapping[str, Sequence[int]], classes: int, generator: torch.Generator
) -> Selection:
    """Return the classes that were named first, and others at random: twelve, or all of fewer.

    Args:
        named: the classes that each search named, the first named first.
        classes: the number of classes.
        generator: draws the others.
    """
    if classes <= IN_FULL:
        return Selection.of_all(classes)
    chosen = named_first(named)
    order = torch.randperm(classes, generator=generator).tolist()
    drawn = [target for target in order if target not in chosen][: IN_FULL - len(chosen)]
    return Selection(
        classes=classes,
        named=tuple(
            NamedClass(target=one, by=tuple(name for name, all_ in named.items() if one in all_))
            for one in chosen
        ),
        drawn=tuple(drawn),
    )


def named_first(named: Mapping[str, Sequence[int]]) -> list[int]:
    """Return the classes to search: the first of every search, then the second, and so on.

    They are as many different ones as `MOST_NAMED`.
    """
    turns = zip_longest(*named.values())
    first = dict.fromkeys(target for turn in turns for target in turn if target is not None)
    return list(first)[:MOST_NAMED]


def named_classes(
    module: nn.Module,
    evidence: Evidence,
    classes: int,
    families: Mapping[str, type[Family]],
    steps: int,
    generator: torch.Generator,
) -> dict[str, list[int]]:
    """Return the classes that each family's stamps and the last layer name, the first first.

    Args:
        module: a function of pixels for inference.
        evidence: images with the module's predictions.
        classes: the number of classes.
        families: the kinds of stamps to send images together by, by the searches' names.
        steps: Adam steps of each family's search.
        generator: the source of starts and draws.
    """
    named = {
        name: sinks_of(module, evidence, classes, family, steps, generator)
        for name, family in families.items()
    }
    return {**named, LAST_LAYER: heaviest_classes(module, classes)}


def sinks_of(
    module: nn.Module,
    evidence: Evidence,
    classes: int,
    family: type[Family],
    steps: int,
    generator: torch.Generator,
) -> list[int]:
    """Return the classes that a family's least stamps send images to together, cheapest first.

    Each start has a share of the classes, dealt at random, that it may come to: they would all name
    the one that nearly any stamp leads to.

    Args:
        module: a function of pixels for inference.
        evidence: images with the module's predictions.
        classes: the number of classes.
        family: the kind of stamps.
        steps: Adam steps of the search.
        generator: the source of starts and draws.
    """
    dealt, starts = torch.randperm(classes, generator=generator).tolist(), min(STARTS, classes)
    slots = [Slot(TOGETHER, among=tuple(dealt[first::starts])) for first in range(starts)]
    settings = GradientSettings(steps=steps, success=SUCCESS)
    found = cheapest_triggers(module, evidence, slots, family, settings, generator)
    shown = Evidence(evidence.pixels[:SINK_IMAGES], evidence.predictions[:SINK_IMAGES])
    return [
        sink_of(
            shown.predictions, given_classes(module, shown, one.slot, one.trigger), one.slot.among
        )
        for one in sorted(found, key=lambda one: one.cost)
        if one.trigger is not None and one.success > 0
    ]


def sinks_of_bank(score: BankScore[Bank]) -> list[int]:
    """Return the classes that the bank reaches, those of the smallest candidate that works first.

    Classes that none works for follow, as far as the best candidate of each goes.
    """
    best = score.success.amax(0)
    order = sorted(zip(smallest_areas(score), (-best).tolist(), range(len(best)), strict=True))
    return [target for _, missed, target in order[:MOST_NAMED] if missed < 0]


def smallest_areas(score: BankScore[Bank]) -> list[float]:
    """Return the area of the smallest candidate that works, of each class; infinite for none."""
    area = (score.bank.candidates[:, 0] * score.bank.candidates[:, 1]).float()
    works = score.success >= WORKS
    areas: list[float] = torch.where(works, area[:, None], torch.inf).amin(0).tolist()
    return areas


def heaviest_classes(module: nn.Module, classes: int) -> list[int]:
    """Return the classes of the largest weights in the last layer; none where it is not found."""
    weights = [weight for weight in _heads(module) if len(weight) == classes]
    if not weights:
        return []
    norms = weights[-1].detach().float().flatten(1).norm(dim=1)
    heaviest: list[int] = norms.topk(min(MOST_NAMED, classes)).indices.tolist()
    return heaviest


def scores_against(
    costs: Mapping[int, float], drawn: Sequence[int], floor: float
) -> dict[int, float]:
    """Return how many robust deviations each class's cost lies below those of the drawn classes.

    It is `judging.cheapness_scores` with these in the place of all classes. So few tell the usual
    spread poorly: it is taken two n-ths larger, with which chance names as seldom as it does among
    ten classes that are all searched, even where the named are the cheapest of all.

    Args:
        costs: the costs of named and drawn classes; infinite ones count as the largest found.
        drawn: the classes that each is compared with, three or more.
        floor: the least spread, in logarithms.
    """
    largest = max((cost for cost in costs.values() if math.isfinite(cost)), default=1.0)
    logs = {one: math.log(max(min(cost, largest), 1e-6)) for one, cost in costs.items()}
    scores = {}
    for target, value in logs.items():
        others = [logs[one] for one in drawn if one != target]
        middle = median(others)
        deviation = 1.4826 * median(abs(other - middle) for other in others)
        scores[target] = (middle - value) / max(deviation * (1 + 2 / len(others)), floor)
    return scores


def _heads(module: nn.Module) -> Iterator[Tensor]:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield layer.weight
