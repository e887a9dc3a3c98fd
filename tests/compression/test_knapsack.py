"""One item of each group: the least effect within the budget, and the room left over is spent."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeclean.compression import knapsack
from edgeclean.compression.knapsack import Item, choose

EFFECTS = st.floats(0, 10, width=16)


def groups_of(costs, times=None):
    fields = (costs, EFFECTS) if times is None else (costs, EFFECTS, times)
    items = st.lists(st.builds(Item, *fields), min_size=1, max_size=4)
    return st.lists(items, min_size=1, max_size=4)


def total(groups, chosen, name):
    return sum(getattr(group[index], name) for group, index in zip(groups, chosen, strict=True))


def within(groups, budget, floor=0):
    """Every choice within the budget, above the floor if that can be."""
    every = itertools.product(*(range(len(group)) for group in groups))
    fitting = [one for one in every if total(groups, one, "cost") <= budget]
    return [one for one in fitting if total(groups, one, "cost") >= floor] or fitting


def least_effect(groups, budget, floor=0):
    return min(
        (total(groups, one, "effect") for one in within(groups, budget, floor)), default=None
    )


@settings(max_examples=80, deadline=None)
@given(
    groups=groups_of(st.integers(0, 60)),
    budget=st.integers(1, 200),
    share=st.sampled_from([0.0, 0.5, 0.98]),
)
def test_the_choice_is_the_best_within_the_budget(groups, budget, share):
    floor = math.ceil(share * budget)
    chosen, best = choose(groups, budget, floor), least_effect(groups, budget, floor)
    if best is None:
        assert chosen is None
        return
    assert total(groups, chosen, "cost") <= budget
    assert total(groups, chosen, "effect") == pytest.approx(best)


@settings(max_examples=80, deadline=None)
@given(
    groups=groups_of(st.integers(0, 60), times=st.integers(1, 1000)),
    budget=st.integers(1, 200),
    share=st.sampled_from([0.0, 0.5]),
    allowance=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_with_an_allowance_the_choice_is_the_quickest_of_those_that_harm_about_as_little(
    groups, budget, share, allowance
):
    floor = math.ceil(share * budget)
    chosen = choose(groups, budget, floor, allowance=allowance)
    if chosen is None:
        assert not within(groups, budget, floor)
        return
    most = (1 + allowance) * least_effect(groups, budget, floor)
    assert total(groups, chosen, "cost") <= budget
    assert total(groups, chosen, "effect") <= most + 1e-9
    if allowance:
        choices = within(groups, budget, floor)
        alike = [one for one in choices if total(groups, one, "effect") <= most]
        quickest = min(total(groups, one, "time") for one in alike)
        assert total(groups, chosen, "time") <= 1.001 * quickest


@settings(max_examples=40, deadline=None)
@given(groups=groups_of(st.integers(0, 60)), pick=st.data(), off=st.integers(-1, 1))
def test_a_budget_of_billions_is_kept_to_the_last_unit(groups, pick, off):
    """The budget is what one of the choices costs, one more, or one less."""
    groups = [
        [Item(item.cost * 10**9 + place % 3, item.effect) for place, item in enumerate(group)]
        for group in groups
    ]
    index = [pick.draw(st.integers(0, len(group) - 1)) for group in groups]
    budget = max(0, total(groups, index, "cost") + off)
    chosen, best = choose(groups, budget), least_effect(groups, budget)
    assert (chosen is None) == (best is None)
    if chosen is not None:
        assert total(groups, chosen, "cost") <= budget
        assert total(groups, chosen, "effect") == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_many_layers_are_chosen_as_an_exact_dynamic_programme_does(seed):
    generator = np.random.default_rng(seed)
    budget = 2500
    groups = [
        [
            Item(int(cost), float(effect))
            for cost, effect in zip(
                np.sort(generator.integers(1, 300, 16)),
                -np.sort(-(generator.exponential(size=16) ** 2)),
                strict=True,
            )
        ]
        for _ in range(20)
    ]
    least = np.full(budget + 1, np.inf)  # of the groups so far, at exactly this cost
    least[0] = 0.0
    for group in groups:
        after = np.full(budget + 1, np.inf)
        for item in group:
            reached = least[: budget + 1 - item.cost] + item.effect
            after[item.cost :] = np.minimum(after[item.cost :], reached)
        least = after
    chosen = choose(groups, budget)
    assert total(groups, chosen, "cost") <= budget
    assert total(groups, chosen, "effect") == pytest.approx(least.min(), rel=1e-9)
    assert choose(groups, budget) == chosen


def test_room_that_is_left_is_spent():
    groups = [[Item(10, 0.0), Item(40, 0.0)], [Item(10, 1.0), Item(50, 0.5)]]
    assert choose(groups, 90) == (1, 1)
    assert choose(groups, 61) == (0, 1)
    assert choose(groups, 19) is None


def test_time_that_costs_little_is_taken():
    groups = [[Item(10, 1.0, 100), Item(10, 1.05, 40)], [Item(10, 1.0, 100), Item(10, 2.0, 90)]]
    assert choose(groups, 20, allowance=0.1) == (1, 0)
    assert choose(groups, 20, allowance=0.0) == (0, 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_choices_as_quick_the_gentlest_is_taken(order):
    """Only one of the two layers can be the quicker one; the effect that it costs decides which."""
    harsh, gentle = (
        [Item(10, 1.0, 100), Item(10, 1.3, 40)],
        [Item(10, 1.0, 100), Item(10, 1.05, 40)],
    )
    assert choose([(harsh, gentle)[place] for place in order], 20, allowance=0.16) == order


def test_room_is_not_spent_on_time():
    groups = [[Item(10, 1.0, 10), Item(20, 1.0, 30)], [Item(10, 1.0, 10), Item(20, 1.0, 10)]]
    assert choose(groups, 40, allowance=0.1) == (0, 1)
    assert choose(groups, 40) == (1, 1)


def test_the_floor_of_a_large_budget_is_met():
    groups = [[Item(1_000_003 * k, 1.0 / k) for k in range(1, 9)] for _ in range(20)]
    budget = 90_000_000
    chosen = choose(groups, budget, 88_200_000)
    assert 88_200_000 <= total(groups, chosen, "cost") <= budget


def test_no_budget_buys_what_is_free():
    assert choose([[Item(0, 1.0), Item(0, 0.5), Item(3, 0.0)]], 0) == (1,)
    assert choose([[Item(1, 0.0)]], 0) is None


def test_no_group_needs_no_choice():
    assert choose([], 0) == ()


def test_nearly_all_of_the_budget_may_be_spent():
    """40,000 of 40,001 are spent, which a rounded budget would not allow."""
    groups = [[Item(13_333, 1.0), Item(20_000, 0.0)] for _ in range(2)] + [[Item(13_334, 1.0)]]
    assert choose(groups, 40_001) == (0, 0, 0)


def test_a_choice_that_only_the_solvers_tolerance_allows_is_not_taken(monkeypatch):
    """A solver that takes the budget a thousandth too large is asked again."""
    exact = knapsack.milp

    def sloppy(goal, *, constraints, **more):
        budget = constraints[1]
        budget.ub = budget.ub * 1.001
        return exact(goal, constraints=constraints, **more)

    monkeypatch.setattr(knapsack, "milp", sloppy)
    groups = [[Item(1000, 2.0), Item(1001, 0.0), Item(999, 3.0)]]
    assert choose(groups, 1000) == (0,)
