"""When is one class's cheapest trigger too cheap? A robust rule over the classes of one network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

SPREAD_FLOOR = 0.25  # of log costs: what a search's own luck scatters a class by


def cheapness_scores(costs: Sequence[float]) -> tuple[float, ...]:
    """How many robust deviations each cost lies below the others, in logarithms.

    Score c is (m - log cost_c) / max(1.4826 MAD, floor), with m and MAD the median and the median
    absolute deviation of the *other* classes' log costs: with few classes the suspect itself must
    not widen the yardstick. Not found (infinite) costs count as the largest found one; where fewer
    than three classes are found, there is nothing to compare with and all scores are 0.
    """
    finite = [cost for cost in costs if math.isfinite(cost)]
    if len(finite) < min(3, len(costs)) or len(costs) < 3:
        return tuple(0.0 for _ in costs)
    logs = [math.log(max(cost if math.isfinite(cost) else max(finite), 1e-6)) for cost in costs]
    scores = []
    for index, value in enumerate(logs):
        others = logs[:index] + logs[index + 1 :]
        middle = median(others)
        deviation = median(abs(other - middle) for other in others)
        scores.append((middle - value) / max(1.4826 * deviation, SPREAD_FLOOR))
    return tuple(scores)
