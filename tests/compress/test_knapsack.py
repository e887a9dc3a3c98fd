"""One item of each group: the least effect within the budget, and the room left over is spent."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeclean.compress.knapsack import Item, choose


def brute_force(groups, budget, floor):
    """The least effect within the budget, above the floor if that can be."""
    choices = [
        (sum(item.cost for item in choice), sum(item.effect for item in choice))
        for choice in itertools.product(*groups)
    ]
    within = [(cost, effect) for cost, effect in choices if cost <= budget]
    above = [(cost, effect) for cost, effect in within if cost >= floor]
    return min((effect for _, effect in above or within), default=None)


@settings(max_examples=80, deadline=None)
@given(
    groups=st.lists(
        st.lists(
            st.builds(Item, st.integers(0, 60), st.floats(0, 10, width=16)), min_size=1, max_size=4
        ),
        min_size=1,
        max_size=4,
    ),
    budget=st.integers(1, 200),
    share=st.sampled_from([0.0, 0.5, 0.98]),
)
def test_the_choice_is_the_best_within_the_budget(groups, budget, share):
    floor = math.ceil(share * budget)
    chosen, best = choose(groups, budget, floor), brute_force(groups, budget, floor)
    if best is None:
        assert chosen is None
        return
    items = [group[index] for group, index in zip(groups, chosen, strict=True)]
    assert sum(item.cost for item in items) <= budget
    assert sum(item.effect for item in items) == pytest.approx(best)


def test_room_that_is_left_is_spent():
    groups = [[Item(10, 0.0), Item(40, 0.0)], [Item(10, 1.0), Item(50, 0.5)]]
    assert choose(groups, 90) == (1, 1)
    assert choose(groups, 61) == (0, 1)
    assert choose(groups, 19) is None


def test_rounding_to_bins_never_breaks_a_large_budget():
    groups = [[Item(1_000_003 * k, 1.0 / k) for k in range(1, 9)] for _ in range(20)]
    budget = 90_000_000
    chosen = choose(groups, budget, 88_200_000)
    spent = sum(group[index].cost for group, index in zip(groups, chosen, strict=True))
    assert 88_200_000 <= spent <= budget


def test_no_budget_buys_what_is_free():
    assert choose([[Item(0, 1.0), Item(0, 0.5), Item(3, 0.0)]], 0) == (1,)
    assert choose([[Item(1, 0.0)]], 0) is None


def test_where_no_choice_fits_the_rounded_budget_the_cheapest_does():
    """40,000 of 40,001 are spent; rounded up to 20,000 bins they would be 20,001."""
    groups = [[Item(13_333, 1.0), Item(20_000, 0.0)] for _ in range(2)] + [[Item(13_334, 1.0)]]
    assert choose(groups, 40_001) == (0, 0, 0)
