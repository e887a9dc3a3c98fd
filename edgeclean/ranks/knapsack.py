"""Choose one form for every layer: least total effect within a total cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 20_000
_HALVINGS = 14  # of the range of prices, on a logarithmic scale
_PRICES = (1e-4, 1e3)  # of all the time, in units of the least effect


@dataclass(frozen=True, slots=True)
class Item:
    """One form of one layer: what it costs, what it does to the network, and how long it takes."""

    cost: int
    effect: float
    time: int = 0


def choose(groups: Sequence[Sequence[Item]], budget: int, floor: int = 0) -> tuple[int, ...] | None:
    """The index of one item of every group, of least total effect with cost at most ``budget``.

    A dynamic programme over costs rounded up to 1/20,000 of the budget (so the budget holds
    exactly); the room that is left is spent on dearer items as long as no effect grows.

    Args:
        groups: of every layer, its forms.
        budget: that the total cost may not exceed.
        floor: that the total cost should not fall below; dropped if no choice is within both.

    Returns:
        None if even the cheapest items exceed the budget.
    """
    cheapest = [min(range(len(group)), key=_price_in(group)) for group in groups]
    if _total(groups, cheapest) > budget:
        return None
    chosen = _dynamic_programme(groups, budget, floor) or cheapest
    _spend(groups, chosen, budget)
    return tuple(chosen)


def choose_quick(
    groups: Sequence[Sequence[Item]], budget: int, floor: int, *, allowance: float
) -> tuple[int, ...] | None:
    """As `choose`, but quicker where that costs little.

    Time is given a price in effect, and the highest price is taken at which the total effect stays
    within ``1 + allowance`` of the least one (Lagrangian relaxation of that second bound).

    Returns:
        None if even the cheapest items exceed the budget.
    """
    best = choose(groups, budget, floor)
    if best is None or allowance <= 0 or not any(item.time for group in groups for item in group):
        return best
    effect, taken = _effect(groups, best), _time(groups, best)
    unit = (effect or 1.0) / max(1, taken)
    low, high = (np.log(unit * price) for price in _PRICES)
    for _ in range(_HALVINGS):
        price = float(np.exp((low + high) / 2))
        priced = [
            [Item(item.cost, item.effect + price * item.time) for item in group] for group in groups
        ]
        chosen = choose(priced, budget, floor)
        if chosen is not None and _effect(groups, chosen) <= (1 + allowance) * effect:
            low = np.log(price)
            if _time(groups, chosen) < _time(groups, best):
                best = chosen
        else:
            high = np.log(price)
    return best


def _effect(groups: Sequence[Sequence[Item]], chosen: Sequence[int]) -> float:
    return sum(group[index].effect for group, index in zip(groups, chosen, strict=True))


def _time(groups: Sequence[Sequence[Item]], chosen: Sequence[int]) -> int:
    return sum(group[index].time for group, index in zip(groups, chosen, strict=True))


def _price_in(group: Sequence[Item]) -> Callable[[int], tuple[int, float]]:
    return lambda index: (group[index].cost, group[index].effect)


def _total(groups: Sequence[Sequence[Item]], chosen: Sequence[int]) -> int:
    return sum(group[index].cost for group, index in zip(groups, chosen, strict=True))


def _dynamic_programme(
    groups: Sequence[Sequence[Item]], budget: int, floor: int
) -> list[int] | None:
    bins = min(_BINS, budget)
    if bins < 1:
        return None
    least = np.full(bins + 1, np.inf)  # the least effect of the groups so far at exactly this cost
    least[0] = 0.0
    picks: list[np.ndarray] = []
    widths = [[-(-item.cost * bins // budget) for item in group] for group in groups]
    for group, group_widths in zip(groups, widths, strict=True):
        after, pick = np.full(bins + 1, np.inf), np.zeros(bins + 1, dtype=np.int32)
        for index, (item, width) in enumerate(zip(group, group_widths, strict=True)):
            if width > bins:
                continue
            reached = np.full(bins + 1, np.inf)
            reached[width:] = least[: bins + 1 - width] + item.effect
            better = reached < after
            after[better], pick[better] = reached[better], index
        least = after
        picks.append(pick)
    # Rounding up may have added a bin for every group, so the floor is raised by as many.
    rounding = len(groups) if bins < budget else 0
    lowest = min(bins, max(0, -(-floor * bins // budget) + rounding))
    start = lowest if np.isfinite(least[lowest:]).any() else 0
    left = start + int(np.argmin(least[start:]))
    if not np.isfinite(least[left]):
        return None
    chosen = []
    for pick, group_widths in zip(reversed(picks), reversed(widths), strict=True):
        index = int(pick[left])
        chosen.append(index)
        left -= group_widths[index]
    return chosen[::-1]


def _spend(groups: Sequence[Sequence[Item]], chosen: list[int], budget: int) -> None:
    """Swap single items for dearer ones of no greater effect while they fit; changes ``chosen``."""
    room = budget - _total(groups, chosen)
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
