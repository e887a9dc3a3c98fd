"""The searches of a scan: each tries one kind of trigger towards every class and scores the result.

A search returns its record, of all classes, and the classes that it suspects. `SEARCHES` has them
by name; `scan` runs those that the settings name. A class is suspected where its cheapest trigger
is too cheap by a robust rule over the classes of one network (`cheapness_scores`), which compares
it with the luckiest of as many normal draws (`suspicion_threshold`).

The banks and the all-to-all search look at every class, whatever their number. The searches of a
family are run towards every class where they are at most twelve, else towards a selection of them
(`selection`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

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
from edgeclean.backdoor.pairs import judged_pairs
from edgeclean.backdoor.selection import (
    Selection,
    named_classes,
    scores_against,
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
FEWEST_REACHED = 3  # classes, to compare costs at all
LEAST_MISSED = 0.01  # share of images: some hundred cannot show less
FEWEST_RESTARTED = 10  # classes that every restart searches, however many there are
SPREAD_FLOOR = 0.25  # of log costs: what a search's own luck scatters a class by
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
        judged = _judged(results) if chosen.is_whole else _judged_against_drawn(results, chosen)
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
    family reaches hardly any class (`_judged_by_misses`). Two or three classes are measured alone:
    strong stripes lead harmless networks of so few to one of them as well, and no other is there
    to tell what is usual.
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
        scores=_judged_by_misses(results) if judged else (0.0,) * probe.classes,
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


def suspicion_threshold(classes: int) -> float:
    """Return the score above which a class is suspected.

    It is what the luckiest of ``classes`` normal draws is expected to reach, sqrt(2 log classes),
    and half a deviation more.
    """
    return 0.5 + math.sqrt(2 * math.log(max(2, classes)))


def cheapness_scores(costs: Sequence[float], fewest: int = FEWEST_REACHED) -> tuple[float, ...]:
    """Return how many robust deviations each cost lies below the others, in logarithms.

    Score c is (m - log cost_c) / max(1.4826 MAD, floor), with m and MAD the median and the median
    absolute deviation of the *other* classes' log costs: with few classes the suspect itself must
    not widen the yardstick. Not found (infinite) costs count as the largest found one; where less
    than ``fewest`` classes are found, there is nothing to compare with and all scores are 0.
    """
    finite = [cost for cost in costs if math.isfinite(cost)]
    if len(finite) < fewest:
        return tuple(0.0 for _ in costs)
    logs = [math.log(max(cost if math.isfinite(cost) else max(finite), 1e-6)) for cost in costs]
    scores = []
    for index, value in enumerate(logs):
        others = logs[:index] + logs[index + 1 :]
        middle = median(others)
        deviation = median(abs(other - middle) for other in others)
        scores.append((middle - value) / max(1.4826 * deviation, SPREAD_FLOOR))
    return tuple(scores)


def target_of(suspect: Suspect) -> int:
    """Return the class that a suspect's trigger leads to; `ELSEWHERE` for an all-to-all one."""
    return ELSEWHERE if suspect.target is None else suspect.target


def slot_of(suspect: Suspect) -> Slot:
    """Return what a suspect's trigger does: the images that it moves, and where to."""
    return Slot(target_of(suspect), ANY if suspect.source is None else suspect.source)


def _judged(results: Sequence[Found]) -> tuple[tuple[float, ...], float]:
    """Return the scores of the classes and the threshold that they are compared with.

    Where fewer than three classes can be reached at all, there are no costs to compare; then it is
    the share of images that each class's best trigger misses. That is weaker evidence than a cost,
    so the threshold is twice as high, and a class that was not reached scores nothing.
    """
    threshold = suspicion_threshold(len(results))
    if sum(math.isfinite(found.cost) for found in results) >= FEWEST_REACHED:
        return cheapness_scores([found.cost for found in results]), threshold
    return _judged_by_misses(results), 2 * threshold


def _judged_by_misses(results: Sequence[Found]) -> tuple[float, ...]:
    """Return scores by the share of images that each class's best trigger misses; 0 for no cost."""
    misses = cheapness_scores([max(1 - found.success, LEAST_MISSED) for found in results])
    pairs = zip(misses, results, strict=True)
    return tuple(score if math.isfinite(found.cost) else 0.0 for score, found in pairs)


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


def _judged_against_drawn(
    results: Sequence[Found], chosen: Selection
) -> tuple[tuple[float, ...], float]:
    """Return the scores of a selection's classes and the threshold, as `_judged` does of all.

    A class is compared with all that were searched: eight drawn ones alone told the usual spread so
    poorly that two natural sinks of 43 traffic signs were suspected beside the true class. The
    threshold is that of all classes of the network: the named ones were chosen among them.
    """
    costs = {found.slot.target: found.cost for found in results}
    threshold = suspicion_threshold(chosen.classes)
    reached = [math.isfinite(costs[target]) for target in chosen.drawn]
    if sum(reached) >= FEWEST_REACHED:
        scores = scores_against(costs, chosen.searched, SPREAD_FLOOR)
        return tuple(scores[found.slot.target] for found in results), threshold
    misses = {found.slot.target: max(1 - found.success, LEAST_MISSED) for found in results}
    scores = scores_against(misses, chosen.searched, SPREAD_FLOOR)
    return tuple(
        scores[found.slot.target] if math.isfinite(found.cost) else 0.0 for found in results
    ), 2 * threshold


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
