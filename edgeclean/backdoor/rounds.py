"""The searches of a round of purification: triggers that a suspected class alone is open to.

Every search compares the suspected classes with some others: what is as cheap towards those is
natural for this network, and unlearning it would cost accuracy. `CHEAP` is how much cheaper a
trigger has to be, in every search alike; a candidate of the bank succeeds as much more often.
`still_suspected` asks the scan's own searches again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from edgeclean.backdoor.bank import Stamps, score_bank
from edgeclean.backdoor.families import FAMILIES
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.gradient import (
    ANY,
    CHEAP,
    ELSEWHERE,
    Evidence,
    GradientSettings,
    Slot,
    cheapest_triggers,
)
from edgeclean.backdoor.pairs import MOST_OTHERS
from edgeclean.backdoor.population import TargetedTrigger
from edgeclean.backdoor.searches import BANK_SUCCESS, SEARCHES, Probe, slot_of, target_of
from edgeclean.backdoor.triggers import Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescan:
    """The length of the searches that look again at classes which were suspected.

    Attributes:
        steps: Adam steps of each gradient search.
        candidates: the number of the bank's candidates to try.
        seed: the seed of the bank's draw.
    """

    steps: int
    candidates: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchContext:
    """The inputs that the searches of one round share.

    Attributes:
        student: a function of pixels for inference, as the round before left it.
        evidence: images with the student's predictions.
        targets: the classes that triggers are searched towards; `ELSEWHERE` for an all-to-all.
        classes: the number of classes.
        generator: the source of every draw.
        source: the class that triggers move alone, whose images the evidence then is; or `ANY`.
    """

    student: nn.Module
    evidence: Evidence
    targets: tuple[int, ...]
    classes: int
    generator: torch.Generator
    source: int = ANY

    @property
    def others(self) -> list[int]:
        """The other classes, suspects that wait for their turn among them."""
        apart = (*self.targets, self.source)
        return [target for target in range(self.classes) if target not in apart]

    def trigger(self, trigger: Trigger, target: int, strongest: float = 1.0) -> TargetedTrigger:
        """Return a trigger that this round found, to be unlearned."""
        return TargetedTrigger(trigger, target, strongest, self.source)


def triggers_of_scan(report: ScanReport, targets: tuple[int, ...]) -> list[TargetedTrigger]:
    """Return the scan's own triggers towards ``targets``, which are compared with the others."""
    costs = {record.name: record.costs for record in report.searches}
    triggers = []
    for suspect in report.suspects:
        others = [
            cost
            for target, cost in enumerate(costs.get(suspect.search, ()))
            if target not in targets
        ]
        strongest = _strongest(suspect.search, suspect.cost, others)
        slot = slot_of(suspect)
        triggers.append(TargetedTrigger(suspect.trigger, slot.target, strongest, slot.source))
    return [one for one in triggers if one.target in targets]


def family_triggers_of_round(
    context: SearchContext, name: str, restarts: int, steps: int
) -> tuple[list[TargetedTrigger], dict[str, Any]]:
    """Run gradient searches, ``restarts`` to each target; keep what is cheaper than to the others.

    Returns:
        The cheap triggers, and for the history the least cost, the others' median and how many
        were kept.
    """
    drawn = torch.randperm(len(context.others), generator=context.generator)[:MOST_OTHERS]
    others = [Slot(context.others[index]) for index in drawn.tolist()]
    slots = [Slot(target) for target in context.targets for _ in range(restarts)]
    results = cheapest_triggers(
        context.student,
        context.evidence,
        slots + others,
        FAMILIES[name],
        GradientSettings(steps=steps),
        context.generator,
    )
    costs = [found.cost for found in results[len(slots) :]]
    yardstick = median(costs or [math.inf])
    cheap = [
        context.trigger(found.trigger, found.slot.target, _strongest(name, found.cost, costs))
        for found in results[: len(slots)]
        if found.trigger is not None and found.cost < CHEAP * yardstick
    ]
    least = min(found.cost for found in results[: len(slots)])
    return cheap, {"least": _rounded(least), "others": _rounded(yardstick), "kept": len(cheap)}


def bank_triggers_of_round(
    context: SearchContext, bank: Stamps, most: int
) -> tuple[list[TargetedTrigger], dict[str, Any]]:
    """Return candidates towards the targets, if the best is plainly better than to the others.

    With a best that others match there is nothing left to unlearn, and another round is no
    harmless one: a needless round was seen to bring back what the one before had removed.
    """
    if len(bank) == 0:
        return [], {"kept": 0}
    evidence, others = context.evidence, context.others
    score = score_bank(
        context.student,
        evidence,
        bank,
        context.classes,
        context.generator,
        asked=[target for target in context.targets if target != ELSEWHERE],
    )
    yardstick = float(score.success.amax(0)[others].median()) if others else 0.0
    success = {
        target: score.moved if target == ELSEWHERE else score.success[:, target]
        for target in context.targets
    }
    best = max((float(rates.max()) for rates in success.values()), default=0.0)
    plain = best >= min(BANK_SUCCESS, yardstick / CHEAP)
    kept = [
        context.trigger(score.bank.trigger(row, *evidence.pixels.shape[-2:]), target)
        for target, rates in success.items()
        for row in _best_rows(rates, most)
        if plain and float(rates[row]) > max(0.25, 0.8 * yardstick)
    ]
    return kept, {"most": _rounded(best), "others": _rounded(yardstick), "kept": len(kept)}


def still_suspected(
    student: nn.Module,
    evidence: Evidence,
    report: ScanReport,
    waiting: Sequence[int],
    settings: Rescan,
    generator: torch.Generator,
) -> list[int]:
    """Return those of the ``waiting`` classes that a search which suspected them suspects again.

    A network that reaches one class by a trigger often reaches its neighbours by something like
    it, and they are suspected beside it. Once the trigger is unlearned they are as dear to reach as
    any class, and unlearning them as well would cost accuracy for nothing.

    Args:
        student: a function of pixels for inference, after the unlearning of another class.
        evidence: images with the student's predictions.
        report: the scan of the network as it came.
        waiting: suspected classes of it; `ELSEWHERE` for an all-to-all.
        settings: the length of the searches.
        generator: the source of starts and draws.
    """
    asked = [one for one in report.suspects if target_of(one) in waiting]
    probe = Probe(
        module=student,
        evidence=evidence,
        classes=len(report.searches[0].costs),
        steps=settings.steps,
        restarts=1,
        candidates=settings.candidates,
        seed=settings.seed,
        chosen=report.selection,
    )
    again: set[tuple[str, int]] = set()
    for name in dict.fromkeys(one.search for one in asked):
        _, found = SEARCHES[name](probe, name, generator)
        again |= {(name, target_of(one)) for one in found}
    known = {target_of(one) for one in asked if (one.search, target_of(one)) in again}
    return [target for target in waiting if target in known]


def _strongest(name: str, cost: float, others: Iterable[float]) -> float:
    """Return how many times as strong a trigger is unlearned: to the cost of the others'.

    The attacker's stamp is stronger than the least that works, and a network that had unlearned
    the least alone was seen to fall to the stamp at its full strength. Only where a stamp of more
    cost is the same one, stronger: a larger mask is another stamp, and an image that is changed
    twice as much is no larger warp.
    """
    finite = [other for other in others if math.isfinite(other)]
    if name not in FAMILIES or not FAMILIES[name].strengthens or not finite:
        return 1.0
    return max(1.0, median(finite) / cost)


def _best_rows(success: Tensor, count: int) -> list[int]:
    rows: list[int] = success.topk(min(count, len(success))).indices.tolist()
    return rows


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
