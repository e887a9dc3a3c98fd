"""The searches of a scan: each tries one kind of trigger towards every class and scores the result.

A search returns its record, of all classes, and the classes that it suspects. `SEARCHES` has them
by name; `scan` runs those that the settings name. A class is suspected where its cheapest trigger
is too cheap beside those of the network's other classes (`judging`).

The banks and the all-to-all search look at every class, whatever their number. The searches of a
family are run towards every class where they are at most twelve, else towards a selection of them
(`selection`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from edgeclean.backdoor.all_to_all import (
    MAP_SCORE,
    bank_stamps,
    can_be_mapped,
    nearest_to_permutation,
    stamps_of,
)
from edgeclean.backdoor.bank import (
    IN_FULL,
    SHAPES,
    Bank,
    BankScore,
    bank_scale,
    build_bank,
    score_bank,
)
from edgeclean.backdoor.families import FAMILIES, Family
from edgeclean.backdoor.few_classes import (
    FEW,
    FEW_THRESHOLD,
    LARGEST_PATCH,
    as_cheap_as_one_way,
    few_class_scores,
    single_image_costs,
)
from edgeclean.backdoor.findings import SearchRecord, Suspect
from edgeclean.backdoor.gradient import (
    ANY,
    ELSEWHERE,
    Evidence,
    Found,
    GradientSettings,
    Slot,
    cheapest_triggers,
    success_rate,
)
from edgeclean.backdoor.gratings import Gratings, build_gratings
from edgeclean.backdoor.judging import (
    FEWEST_REACHED,
    SPREAD_FLOOR,
    cheapness_scores,
    costs_tell,
    judged_costs,
    scores_of_misses,
    suspicion_threshold,
)
from edgeclean.backdoor.pairs import judged_pairs
from edgeclean.backdoor.selection import (
    Selection,
    named_classes,
    selection,
    sinks_of_bank,
    smallest_areas,
)

BANK, ALL_TO_ALL, GRATINGS, ONE_SOURCE = "patch bank", "all-to-all", "gratings", "source-specific"
NAMING_SEED = 104729  # added to the scan's: the searches' own draws stay as they are without it
BANK_SUCCESS = 0.9  # of a bank candidate on all images, to count as a trigger
GRATING_SUCCESS = 0.8  # of a grating on all images, to count as a trigger
LARGEST_SQUARE = max(tall * wide for tall, wide in SHAPES)  # pixels of a 32x32 image
BANK_TRIES = 8  # smallest candidates of a class that are confirmed on all images
GRATING_TRIES = 2  # best gratings of a class that are confirmed on all images
LONGER = 3  # times as many steps, to reach classes that a suspicious one is compared with
FEWEST_RESTARTED = 10  # classes that every restart searches, however many there are
BANK_SEES = (
    "small squares, bars and lines of saturated colours, checkers, stripes or binary noise, "
    "also where gradients are masked",
    "textures that are not in the bank, and everything larger than a few pixels a side",
)
ALL_TO_ALL_SEES = (
    "one stamp, patch or additive, that sends every class to another class of its own",
    "stamps that differ from image to image, and attacks that move few of the classes",
)
GRATINGS_SEES = (
    "sine stripes over the whole image, of up to nine periods a side (as SIG's)",
    "stripes of more periods, of periods below 3.5 pixels, at other angles, or far weaker; stripes "
    "that lead to several classes; and everything else",
)
GRATINGS_OF_FEW = (
    "everything here: strong stripes lead harmless networks of two or three classes to one of them "
    "too, so the successes are measured and nothing is suspected"
)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The inputs that all searches of a scan share.

    Attributes:
        module: a function of pixels for inference; its parameters take no gradient.
        evidence: images with the module's predictions.
        classes: the number of classes.
        steps: Adam steps of each gradient search.
        restarts: independent starts of each gradient search.
        candidates: the number of the bank's candidates to try.
        seed: the seed of the bank and of the draw from it.
        run: the searches of the scan, which choose the classes that families search, where there
            are many; () for every class.
        chosen: those classes, where an earlier scan has chosen them; None to choose them.
    """

    module: nn.Module
    evidence: Evidence
    classes: int
    steps: int
    restarts: int
    candidates: int
    seed: int
    run: tuple[str, ...] = ()
    chosen: Selection | None = None

    @cached_property
    def selection(self) -> Selection:
        """The classes that families search a trigger towards, chosen once for all searches."""
        if self.chosen is not None:
            return self.chosen
        families = {name: FAMILIES[name] for name in self.run if name in FAMILIES}
        if self.classes <= IN_FULL or not families:
            return Selection.of_all(self.classes)
        generator = torch.Generator().manual_seed(self.seed + NAMING_SEED)
        return selection(self.named(families, generator), self.classes, generator)

    def named(
        self, families: Mapping[str, type[Family]], generator: torch.Generator
    ) -> dict[str, list[int]]:
        """Return the classes that each search without a target names, the first named first."""
        known = self.bank_score if BANK in self.run else None
        of_bank = {} if known is None else {BANK: sinks_of_bank(known)}
        return of_bank | named_classes(
            self.module, self.evidence, self.classes, families, self.steps, generator
        )

    @cached_property
    def bank_score(self) -> BankScore[Bank] | None:
        """The best candidates, scored once for all searches; None where images are too small."""
        generator = torch.Generator().manual_seed(self.seed)
        channels, height, width = self.evidence.pixels.shape[1:]
        bank = build_bank((channels, height, width), generator).drawn(self.candidates, generator)
        if len(bank) == 0:
            return None
        return score_bank(self.module, self.evidence, bank, self.classes, generator)


Search = Callable[[Probe, str, torch.Generator], tuple[SearchRecord, list[Suspect]]]


def search_family(
    probe: Probe, name: str, generator: torch.Generator
) -> tuple[SearchRecord, list[Suspect]]:
    """Search the cheapest trigger of one family towards every class, from several starts.

    With many classes, later starts search only the cheapest quarter: a class that is dearer
    than three quarters of the others is no outlier on the cheap side, and the median stays. With
    more still, only a selection of them is searched at all (`Probe.selection`).
    """
    family, gradient = FAMILIES[name], GradientSettings(steps=probe.steps)
    chosen = probe.selection
    best: dict[int, Found] = {}
    restarted = list(chosen.searched)
    for _ in range(probe.restarts):
        slots = [Slot(target) for target in restarted]
        for found in cheapest_triggers(
            probe.module, probe.evidence, slots, family, gradient, generator
        ):
            target = found.slot.target
            earlier = best.get(target, found)
            best[target] = min(earlier, found, key=lambda one: (one.cost, -one.success))
        most = max(FEWEST_RESTARTED, len(chosen.searched) // 4)
        restarted = sorted(sorted(best, key=lambda target: best[target].cost)[:most])
    results = [best[target] for target in chosen.searched]
    if probe.classes <= FEW:
        judged = _judged_few(probe, results, family, generator)
    else:
        results = _with_costs_to_compare(probe, results, family, generator)
        judged = judged_costs(results, chosen)
    record = SearchRecord(
        name=name,
        sees=family.sees,
        blind_to=family.blind_to,
        cost_unit=family.cost_unit,
        costs=_of_each_class(chosen, [found.cost for found in results], math.inf),
        successes=_of_each_class(chosen, [found.success for found in results], 0.0),
        scores=_of_each_class(chosen, judged[0], 0.0),
        threshold=judged[1],
        searched=None if chosen.is_whole else chosen.searched,
    )
    return record, _suspects(record, results)


def search_bank(
    probe: Probe, name: str, generator: torch.Generator
) -> tuple[SearchRecord, list[Suspect]]:
    """Search the smallest of the bank's candidates that works, for every class.

    It must work on all images, for the twelve classes that the smallest lead to; of the others,
    where there are more, the cost is that on the images that they were scored on.
    """
    del generator  # the bank has its own, for it serves more than one search
    results = [Found(Slot(target), math.inf, 0.0, None) for target in range(probe.classes)]
    if probe.bank_score is not None:
        areas = smallest_areas(probe.bank_score)
        most = probe.bank_score.success.amax(0).tolist()
        results = [
            Found(Slot(target), area, success if math.isfinite(area) else 0.0, None)
            for target, (area, success) in enumerate(zip(areas, most, strict=True))
        ]
        for target in sorted(range(probe.classes), key=lambda target: areas[target])[:IN_FULL]:
            results[target] = _cheapest_of_bank(probe, probe.bank_score, target)
    costs = tuple(found.cost for found in results)
    # A class that no candidate reaches is dearer than any of the bank: twice the largest.
    square = LARGEST_SQUARE * bank_scale(*probe.evidence.pixels.shape[-2:]) ** 2
    unreached = 2 * max([square, *(cost for cost in costs if math.isfinite(cost))])
    record = SearchRecord(
        name=name,
        sees=BANK_SEES[0],
        blind_to=BANK_SEES[1],
        cost_unit="pixels",
        costs=costs,
        successes=tuple(found.success for found in results),
        scores=cheapness_scores([min(cost, unreached) for cost in costs], fewest=2),
        threshold=2 * suspicion_threshold(probe.classes),
    )
    return record, _suspects(record, results)


def search_gratings(
    probe: Probe, name: str, generator: torch.Generator
) -> tuple[SearchRecord, list[Suspect]]:
    """Search the sine grating that sends most images to each class.

    All are of one amplitude, so that it is the shares that they miss which are judged, as where a
    family reaches hardly any class (`judging.scores_of_misses`). Two or three classes are measured
    alone: strong stripes lead harmless networks of so few to one of them as well, and no other is
    there to tell what is usual.
    """
    results = [Found(Slot(target), math.inf, 0.0, None) for target in range(probe.classes)]
    channels, height, width = probe.evidence.pixels.shape[1:]
    gratings = build_gratings((channels, height, width))
    if len(gratings):
        score = score_bank(probe.module, probe.evidence, gratings, probe.classes, generator)
        results = [_best_grating(probe, score, target) for target in range(probe.classes)]
    judged = probe.classes > FEW
    record = SearchRecord(
        name=name,
        sees=GRATINGS_SEES[0],
        blind_to=GRATINGS_SEES[1] if judged else GRATINGS_OF_FEW,
        cost_unit=FAMILIES["additive"].cost_unit,
        costs=tuple(found.cost for found in results),
        successes=tuple(found.success for found in results),
        scores=scores_of_misses(results, Selection.of_all(probe.classes))
        if judged
        else (0.0,) * probe.classes,
        threshold=2 * suspicion_threshold(probe.classes),
    )
    return record, _suspects(record, results)


def search_maps(
    probe: Probe, name: str, generator: torch.Generator
) -> tuple[SearchRecord, list[Suspect]]:
    """Search an all-to-all stamp; the record has the share of each class that moves together.

    The score of the one suspect is that of the whole map, and so is the threshold. With many
    classes there may be too few images of each to draw a map; then none is searched.
    """
    if probe.classes > IN_FULL and not can_be_mapped(probe.evidence):
        return _nothing_mapped(probe, name), []
    stamps = bank_stamps(probe.evidence, probe.bank_score)
    for family in (FAMILIES["masked patch"], FAMILIES["additive"]):
        stamps += stamps_of(probe.module, probe.evidence, family, probe.steps, generator)
    if probe.classes <= FEW:
        stamps = as_cheap_as_one_way(
            probe.module, probe.evidence, stamps, probe.classes, probe.steps, generator
        )
    found, moved = nearest_to_permutation(probe.module, probe.evidence, stamps, probe.classes)
    record = SearchRecord(
        name=name,
        sees=ALL_TO_ALL_SEES[0],
        blind_to=ALL_TO_ALL_SEES[1],
        cost_unit="pixels of a patch, or grey levels of an additive stamp",
        costs=(found.cost,) * probe.classes,
        successes=moved.shares,
        scores=tuple(share * moved.different for share in moved.shares),
        threshold=MAP_SCORE,
        searched=None if probe.classes <= IN_FULL else moved.mapped,
    )
    if found.trigger is None or moved.score < MAP_SCORE:
        return record, []
    return record, [_suspect(record, found, moved.score, None)]


def search_pairs(
    probe: Probe, name: str, generator: torch.Generator
) -> tuple[SearchRecord, list[Suspect]]:
    """Search triggers from each class to each other; see `pairs`."""
    return judged_pairs(name, probe.module, probe.evidence, probe.classes, probe.steps, generator)


def _nothing_mapped(probe: Probe, name: str) -> SearchRecord:
    nothing = (0.0,) * probe.classes
    return SearchRecord(
        name=name,
        sees=ALL_TO_ALL_SEES[0],
        blind_to=f"everything here: of too few of the {probe.classes:,} classes there are images",
        cost_unit="pixels of a patch, or grey levels of an additive stamp",
        costs=(math.inf,) * probe.classes,
        successes=nothing,
        scores=nothing,
        threshold=MAP_SCORE,
        searched=(),
    )


SEARCHES: dict[str, Search] = {
    BANK: search_bank,
    **dict.fromkeys(FAMILIES, search_family),
    ALL_TO_ALL: search_maps,
    GRATINGS: search_gratings,
    ONE_SOURCE: search_pairs,
}


def target_of(suspect: Suspect) -> int:
    """Return the class that a suspect's trigger leads to; `ELSEWHERE` for an all-to-all one."""
    return ELSEWHERE if suspect.target is None else suspect.target


def slot_of(suspect: Suspect) -> Slot:
    """Return what a suspect's trigger does: the images that it moves, and where to."""
    return Slot(target_of(suspect), ANY if suspect.source is None else suspect.source)


def _with_costs_to_compare(
    probe: Probe, results: list[Found], family: type[Family], generator: torch.Generator
) -> list[Found]:
    """Search on for costs to compare with, where a class would be suspected for its misses alone.

    So many steps reach one class and stop just short of the next, though a trigger to that costs
    nearly the same: on images of 224x224 a natural class stood alone so. It and the likeliest of
    the others are given `LONGER` times the steps; where these stay out of reach, misses decide.
    """
    chosen = probe.selection
    scores, threshold = judged_costs(results, chosen)
    if costs_tell(results, chosen) or max(scores) <= threshold:
        return results
    alone = [one for one, score in zip(results, scores, strict=True) if score > threshold]
    apart = [one for one in results if math.isinf(one.cost) and one.slot.target in chosen.drawn]
    likeliest = sorted(apart, key=lambda one: -one.success)[:FEWEST_REACHED]
    slots = [one.slot for one in alone + likeliest]
    longer = GradientSettings(steps=LONGER * probe.steps)
    again = cheapest_triggers(probe.module, probe.evidence, slots, family, longer, generator)
    best = {one.slot: one for one in again}
    return [min(one, best.get(one.slot, one), key=lambda found: found.cost) for one in results]


def _judged_few(
    probe: Probe, results: Sequence[Found], family: type[Family], generator: torch.Generator
) -> tuple[tuple[float, ...], float]:
    """Return the scores of two or three classes, and their threshold; see `few_classes`."""
    alone = single_image_costs(
        probe.module, probe.evidence, probe.classes, family, probe.steps, generator
    )
    costs = [found.cost for found in results]
    scores = few_class_scores(costs, alone, SPREAD_FLOOR)
    if family is FAMILIES["masked patch"]:
        height, width = probe.evidence.pixels.shape[-2:]
        largest = LARGEST_PATCH * height * width
        pairs = zip(scores, costs, strict=True)
        scores = tuple(score if cost <= largest else min(score, 0.0) for score, cost in pairs)
    return scores, FEW_THRESHOLD


def _of_each_class(chosen: Selection, values: Sequence[float], other: float) -> tuple[float, ...]:
    """Return a value for each class of the network, ``other`` for those that were not searched."""
    known = dict(zip(chosen.searched, values, strict=True))
    return tuple(known.get(target, other) for target in range(chosen.classes))


def _cheapest_of_bank(probe: Probe, score: BankScore[Bank], target: int) -> Found:
    """Return the smallest candidate that works on all images, not on the few of its score alone."""
    slot, success = Slot(target), score.success[:, target]
    area = score.bank.candidates[:, 0] * score.bank.candidates[:, 1]
    # Smallest area first, then highest success; success is at most 1, areas are whole numbers.
    rank = torch.where(success >= BANK_SUCCESS, area - success / 2, torch.inf)
    height, width = probe.evidence.pixels.shape[-2:]
    most = 0.0
    for row in rank.argsort()[:BANK_TRIES].tolist():
        if math.isinf(float(rank[row])):
            break
        trigger = score.bank.trigger(row, height, width)
        confirmed = success_rate(probe.module, probe.evidence, slot, trigger)
        most = max(most, confirmed)
        if confirmed >= BANK_SUCCESS:
            return Found(slot, float(area[row]), confirmed, trigger)
    return Found(slot, math.inf, most, None)


def _best_grating(probe: Probe, score: BankScore[Gratings], target: int) -> Found:
    """Return the grating that sends most images to a class, if that is enough of all images.

    The class's success is that on all images where one was tried on them, else the best of the
    score, which so many tries make too high rather than too low.
    """
    slot, success = Slot(target), score.success[:, target]
    height, width = probe.evidence.pixels.shape[-2:]
    rows = success.topk(min(GRATING_TRIES, len(success))).indices.tolist()
    if float(success[rows[0]]) < GRATING_SUCCESS:
        return Found(slot, math.inf, float(success[rows[0]]), None)
    triggers = [score.bank.trigger(row, height, width) for row in rows]
    confirmed = [success_rate(probe.module, probe.evidence, slot, one) for one in triggers]
    most = max(confirmed)
    if most < GRATING_SUCCESS:
        return Found(slot, math.inf, most, None)
    trigger = triggers[confirmed.index(most)]
    return Found(slot, 255 * float(trigger.delta.square().mean().sqrt()), most, trigger)


def _suspects(record: SearchRecord, results: Sequence[Found]) -> list[Suspect]:
    """Return every class above the search's threshold that a trigger was found for."""
    scored = [(found, record.scores[found.slot.target]) for found in results]
    return [
        _suspect(record, found, score, found.slot.target)
        for found, score in scored
        if score > record.threshold and found.trigger is not None
    ]


def _suspect(record: SearchRecord, found: Found, score: float, target: int | None) -> Suspect:
    assert found.trigger is not None  # noqa: S101 - the callers checked
    return Suspect(
        target=target,
        search=record.name,
        score=score,
        cost=found.cost,
        success=found.success,
        trigger=found.trigger,
    )
