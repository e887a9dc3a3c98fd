"""Of a product that `exhaustive` slices, something of every kind runs at every change."""

from __future__ import annotations

import pytest
from exhaustive import each_once, exhaustive


def fast(params: list[object]) -> list[object]:
    return [one.values for one in params if not one.marks]  # type: ignore[attr-defined]


def test_what_is_kept_is_fast_and_the_rest_slow() -> None:
    params = exhaustive(["a", "b", "c"], ["b"])
    assert [one.values for one in params] == [("a",), ("b",), ("c",)]
    assert [[mark.name for mark in one.marks] for one in params] == [["slow"], [], ["slow"]]
    assert fast(exhaustive([("a", 1), ("b", 2)], lambda one: one[1] == 2)) == [("b", 2)]


def test_a_param_keeps_its_name_and_its_marks() -> None:
    (one, other) = exhaustive(
        [pytest.param(1, id="one", marks=pytest.mark.gpu), pytest.param(2)],
        lambda param: param.values == (2,),
    )
    assert (one.id, [mark.name for mark in one.marks]) == ("one", ["gpu", "slow"])
    assert list(other.marks) == []


def test_a_slice_of_nothing_or_of_what_is_not_there_is_an_error() -> None:
    with pytest.raises(AssertionError, match="nothing of this law"):
        exhaustive([1, 2], lambda one: one > 2)
    with pytest.raises(AssertionError, match=r"no parameters: \['c'\]"):
        exhaustive(["a", "b"], ["a", "c"])


def test_every_value_of_every_axis_is_in_a_slice_of_their_product() -> None:
    axes = (["a", "b", "c"], [1, 2], [True])
    points = each_once(*axes)
    assert len(points) == 3
    for place, axis in enumerate(axes):
        assert {point[place] for point in points} == set(axis)
