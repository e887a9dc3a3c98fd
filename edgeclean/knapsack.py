"""Choose one form for every layer: least total effect within a total cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 20_000


@dataclass(frozen=True, slots=True)
class Item:
    """One form of one layer: what it costs, and what choosing it does to the network."""

    cost: int
    effect: float


def choose(groups: Sequence[Sequence[Item]], budget: int) -> tuple[int, ...] | None:
    """The index of one item of every group, of least total effect with cost at most ``budget``.

    A dynamic programme over costs rounded up to 1/20,000 of the budget (so the budget holds
    exactly), then the room that rounding left is spent where it lowers the effect most, and at
    last, where effects tie, on the dearest item that fits.

    Returns:
        None if even the cheapest items exceed the budget.
    """
    cheapest = tuple(min(range(len(g)), key=lambda i, g=g: g[i].cost) for g in groups)  # type: ignore[misc]
    if sum(group[i].cost for group, i in zip(groups, cheapest, strict=True)) > budget:
        return None
    chosen = list(_dynamic_programme(groups, budget) or cheapest)
    _spend(groups, chosen, budget)
    return tuple(chosen)


def _dynamic_programme(groups: Sequence[Sequence[Item]], budget: int) -> list[int] | None:
    bins = min(_BINS, budget)
    if bins < 1:
        return None
    best = np.zeros(bins + 1)
    picks: list[np.ndarray] = []
    widths = [[-(-item.cost * bins // budget) for item in group] for group in groups]
    for group, group_widths in zip(groups, widths, strict=True):
        after, pick = np.full(bins + 1, np.inf), np.zeros(bins + 1, dtype=np.int32)
        for index, (item, width) in enumerate(zip(group, group_widths, strict=True)):
            if width > bins:
                continue
            reached = np.full(bins + 1, np.inf)
            reached[width:] = best[: bins + 1 - width] + item.effect
            better = reached < after
            after[better], pick[better] = reached[better], index
        best = after
        picks.append(pick)
    if not np.isfinite(best[bins]):
        return None
    chosen, left = [], bins
    for pick, group_widths in zip(reversed(picks), reversed(widths), strict=True):
        index = int(pick[left])
        chosen.append(index)
        left -= group_widths[index]
    return chosen[::-1]


def _spend(groups: Sequence[Sequence[Item]], chosen: list[int], budget: int) -> None:
    """Swap single items for dearer ones of no greater effect while they fit; changes ``chosen``."""
    room = budget - sum(group[i].cost for group, i in zip(groups, chosen, strict=True))
    while True:
        swaps = [
            (group[now].effect - item.effect, item.cost - group[now].cost, number, index)
            for number, (group, now) in enumerate(zip(groups, chosen, strict=True))
            for index, item in enumerate(group)
            if 0 < item.cost - group[now].cost <= room and item.effect <= group[now].effect
        ]
        if not swaps:
            return
        _, spent, number, index = max(swaps)
        chosen[number] = index
        room -= spent
