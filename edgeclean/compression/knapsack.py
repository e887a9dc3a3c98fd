"""Choose one item of every group so that the total effect is least within a total cost.

Groups may be tied to each other: the item of one then has the same label as that of the other, as
two layers keep the same number of the channels between them.

The multiple-choice knapsack problem as a mixed-integer linear programme, which HiGHS solves by
branch and bound (Huangfu and Hall 2018, through `scipy.optimize.milp`). HiGHS computes in floating
point, so what it chooses is checked against the limits in whole numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

# HiGHS works to absolute tolerances of 1e-6: what is minimised is scaled so that this is nothing,
# and limits to 1 (where they were larger, its presolve was seen to lose the optimum).
_GOAL_SCALE = 1e6
_MOST_CUTS = 100
_MOST_NODES = 50_000  # of one search, half a minute; then the best choice that was found is taken
_TIME_NODES = 2000  # likewise where time is weighed, which is measured and seldom proved quickest
_TIME_GAP = 1e-3  # by which a choice may be slower than the quickest: measured times are no finer
_ROUNDING = 1e-9  # of sums of effects in another order
Number = int | float


@dataclass(frozen=True, slots=True)
class Item:
    """One candidate: its cost, its effect on the network, how long it takes, and two labels."""

    cost: int
    effect: float
    time: int = 0
    labels: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Tie:
    """Two groups whose chosen items must agree in one label each.

    Attributes:
        one: the number of a group, and the place of a label among its items' labels.
        other: likewise.
    """

    one: tuple[int, int]
    other: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A sum over the chosen items that must lie within bounds."""

    amounts: Sequence[Number]
    least: Number = -np.inf
    most: Number

    def is_kept(self, picked: Sequence[int]) -> bool:
        """Return whether it holds exactly; whole numbers are summed as whole numbers."""
        return self.least <= sum(self.amounts[place] for place in picked) <= self.most


def choose(
    groups: Sequence[Sequence[Item]],
    budget: int,
    floor: int = 0,
    *,
    allowance: float = 0.0,
    ties: Sequence[Tie] = (),
) -> tuple[int, ...] | None:
    """The index of one item of every group, of least total effect with cost at most ``budget``.

    Of choices of one effect a dearer one is taken: room that is left is spent as long as no effect
    grows. With an allowance, and items that take time, it is the quickest choice (to a thousandth)
    whose total effect is within ``1 + allowance`` of the least one; of choices as quick, the one
    of least effect.

    Args:
        groups: of every layer, its candidates.
        budget: that the total cost may not exceed.
        floor: that the total cost should not fall below; dropped if no choice is within both.
        allowance: see above.
        ties: between groups.

    Returns:
        None if even the cheapest items exceed the budget.
    """
    if not groups:
        return () if budget >= 0 else None
    cheapest = _cheapest(groups, ties)
    if sum(_picked(groups, cheapest, lambda item: item.cost)) > budget:
        return None
    items = [item for group in groups for item in group]
    costs, effects = [item.cost for item in items], [item.effect for item in items]
    within = Limit(amounts=costs, least=floor, most=budget)
    best = _least(groups, effects, [within], ties) if floor <= budget else None
    if best is None:
        within = Limit(amounts=costs, most=budget)
        best = _least(groups, effects, [within], ties)
    if best is None:
        best = cheapest
    if allowance > 0 and any(item.time for item in items):
        chosen = _quickest(groups, items, best, [within], allowance, ties)
        _spend(groups, chosen, budget, lambda item: (item.effect, item.time))
    else:
        chosen = best
        _spend(groups, chosen, budget, lambda item: (item.effect,))
    return tuple(chosen)


def least_cost(groups: Sequence[Sequence[Item]], ties: Sequence[Tie] = ()) -> int:
    """The least total cost that one item of every group can have."""
    return int(sum(_picked(groups, _cheapest(groups, ties), lambda item: item.cost)))


def _cheapest(groups: Sequence[Sequence[Item]], ties: Sequence[Tie]) -> list[int]:
    """The choice of least cost; without ties, the cheapest item of every group."""
    free = [min(range(len(group)), key=_cost_in(group)) for group in groups]
    if not ties or _agree(groups, free, ties):
        return free
    costs = [item.cost for group in groups for item in group]
    found = _least(groups, costs, [], ties)
    assert found is not None  # noqa: S101 - all channels kept is a choice
    return found


def _quickest(
    groups: Sequence[Sequence[Item]],
    items: Sequence[Item],
    best: list[int],
    limits: Sequence[Limit],
    allowance: float,
    ties: Sequence[Tie],
) -> list[int]:
    """Choose the quickest of those that harm little more than the best; of these, the gentlest."""
    effects, times = [item.effect for item in items], [item.time for item in items]
    least = sum(_picked(groups, best, lambda item: item.effect))
    alike = Limit(amounts=effects, most=(1 + allowance) * least * (1 + _ROUNDING))
    alike_limits = [*limits, alike]
    quick = _least(groups, times, alike_limits, ties, gap=_TIME_GAP, nodes=_TIME_NODES) or best
    as_quick = Limit(amounts=times, most=sum(_picked(groups, quick, lambda item: item.time)))
    return _least(groups, effects, [*limits, as_quick], ties, nodes=_TIME_NODES) or quick


def _cost_in(group: Sequence[Item]) -> Callable[[int], int]:
    return lambda index: group[index].cost


def _least(
    groups: Sequence[Sequence[Item]],
    amounts: Sequence[Number],
    limits: Sequence[Limit],
    ties: Sequence[Tie] = (),
    *,
    gap: float = 0.0,
    nodes: int = _MOST_NODES,
) -> list[int] | None:
    """One item of every group with the least sum of amounts within the limits; None if none is.

    A choice that only HiGHS's tolerances let pass is cut off by a constraint of its own, and the
    programme solved again.
    """
    sizes = [len(group) for group in groups]
    starts = [int(start) for start in np.cumsum([0, *sizes[:-1]])]
    one_of_each = csr_array(
        (np.ones(sum(sizes)), (np.repeat(np.arange(len(sizes)), sizes), np.arange(sum(sizes))))
    )
    rows = [LinearConstraint(one_of_each, 1, 1), *map(_scaled, limits)]
    rows += [_tied(groups, starts, tie) for tie in ties]
    goal = np.asarray(amounts, dtype=float)
    goal = _GOAL_SCALE * (goal / (goal.max() or 1.0))
    for _ in range(_MOST_CUTS):
        solved = milp(
            goal,
            integrality=np.ones(len(goal)),
            bounds=Bounds(0, 1),
            constraints=rows,
            options={"mip_rel_gap": gap, "node_limit": nodes},
        )
        if solved.x is None:
            return None
        chosen = [
            int(np.argmax(solved.x[start : start + size]))
            for start, size in zip(starts, sizes, strict=True)
        ]
        picked = [start + index for start, index in zip(starts, chosen, strict=True)]
        if all(limit.is_kept(picked) for limit in limits) and _agree(groups, chosen, ties):
            return chosen
        cut = np.zeros(len(goal))
        cut[picked] = 1
        rows.append(LinearConstraint(cut, ub=len(groups) - 1))
    return None


def _tied(groups: Sequence[Sequence[Item]], starts: Sequence[int], tie: Tie) -> LinearConstraint:
    """Of every label, as many chosen items in the one group as in the other: one or none."""
    labels = sorted({item.labels[place] for number, place in (tie.one, tie.other)
                     for item in groups[number]})  # fmt: skip
    rows = {label: row for row, label in enumerate(labels)}
    signs, places = [], []
    for sign, (number, place) in ((1.0, tie.one), (-1.0, tie.other)):
        for index, item in enumerate(groups[number]):
            signs.append(sign)
            places.append((rows[item.labels[place]], starts[number] + index))
    size = sum(len(group) for group in groups)
    rows_of, columns = zip(*places, strict=True)
    matrix = csr_array((signs, (rows_of, columns)), shape=(len(labels), size))
    return LinearConstraint(matrix, 0, 0)


def _agree(groups: Sequence[Sequence[Item]], chosen: Sequence[int], ties: Sequence[Tie]) -> bool:
    """Whether the chosen items of tied groups have the same labels."""

    def label(number: int, place: int) -> int:
        return groups[number][chosen[number]].labels[place]

    return all(label(*tie.one) == label(*tie.other) for tie in ties)


def _scaled(limit: Limit) -> LinearConstraint:
    """The limit in units of its upper bound; an amount of twice that can be no more out of it."""
    unit = limit.most if limit.most > 0 else 1.0
    amounts = np.minimum(np.asarray(limit.amounts, dtype=float) / unit, 2.0)
    return LinearConstraint(amounts, limit.least / unit, limit.most / unit)


def _spend(
    groups: Sequence[Sequence[Item]],
    chosen: list[int],
    budget: int,
    harm: Callable[[Item], tuple[Number, ...]],
) -> None:
    """Swap single items for dearer ones of no greater harm while they fit; changes ``chosen``.

    A swap leaves the labels what they are, so that ties hold.
    """
    room = budget - sum(_picked(groups, chosen, lambda item: item.cost))
    while True:
        swaps = [
            (group[now].effect - item.effect, item.cost - group[now].cost, number, index)
            for number, (group, now) in enumerate(zip(groups, chosen, strict=True))
            for index, item in enumerate(group)
            if 0 < item.cost - group[now].cost <= room
            and item.labels == group[now].labels
            and all(new <= old for new, old in zip(harm(item), harm(group[now]), strict=True))
        ]
        if not swaps:
            return
        _, spent, number, index = max(swaps)
        chosen[number] = index
        room -= spent


def _picked(
    groups: Sequence[Sequence[Item]], chosen: Sequence[int], read: Callable[[Item], Number]
) -> list[Number]:
    return [read(group[index]) for group, index in zip(groups, chosen, strict=True)]
