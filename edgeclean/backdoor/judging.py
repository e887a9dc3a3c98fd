"""Judge which class's trigger is too cheap, by what triggers towards the other classes cost.

A class is suspected where its cost lies further below the others than the luckiest of as many
normal draws (`suspicion_threshold`), in robust deviations of logarithms (`cheapness_scores`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from edgeclean.backdoor.gradient import Found
from edgeclean.backdoor.selection import Selection, scores_against

FEWEST_REACHED = 3  # classes, to compare costs at all
LEAST_MISSED = 0.01  # share of images: some hundred cannot show less
SPREAD_FLOOR = 0.25  # of log costs: what a search's own luck scatters a class by


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


def judged_costs(results: Sequence[Found], chosen: Selection) -> tuple[tuple[float, ...], float]:
    """Return the scores of the classes that were searched, and the threshold they are held against.

    Where fewer than three classes can be reached at all (of those drawn, where not all were
    searched), there are no costs to compare; then it is the share of images that each class's best
    trigger misses. That is weaker evidence than a cost, so the threshold is twice as high, and a
    class that was not reached scores nothing.

    Of many classes a selection is compared with all that were searched: eight drawn ones alone told
    the usual spread so poorly that two natural sinks of 43 traffic signs were suspected beside the
    true class. The threshold is that of all classes of the network: the named ones were chosen
    among them.
    """
    threshold = suspicion_threshold(chosen.classes)
    if costs_tell(results, chosen):
        return _scores([found.cost for found in results], chosen), threshold
    return scores_of_misses(results, chosen), 2 * threshold


def costs_tell(results: Sequence[Found], chosen: Selection) -> bool:
    """Return whether enough classes were reached, of those compared with, to compare costs."""
    reached = {found.slot.target for found in results if math.isfinite(found.cost)}
    return len(reached.intersection(chosen.drawn)) >= FEWEST_REACHED


def scores_of_misses(results: Sequence[Found], chosen: Selection) -> tuple[float, ...]:
    """Return scores by the share of images that each class's best trigger misses; 0 for no cost."""
    misses = _scores([max(1 - found.success, LEAST_MISSED) for found in results], chosen)
    pairs = zip(misses, results, strict=True)
    return tuple(score if math.isfinite(found.cost) else 0.0 for score, found in pairs)


def _scores(costs: Sequence[float], chosen: Selection) -> tuple[float, ...]:
    if chosen.is_whole:
        return cheapness_scores(costs)
    scores = scores_against(
        dict(zip(chosen.searched, costs, strict=True)), chosen.searched, SPREAD_FLOOR
    )
    return tuple(scores[target] for target in chosen.searched)
