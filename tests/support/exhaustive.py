"""A product of parameters of which a slice runs at every change, and the rest is `slow`.

The slice has every kind of its law at least once; `make test-slow` runs what remains. A slice that
names what is not there, or nothing, is an error as the tests are collected.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import cycle, islice
from typing import Any

import pytest

ParameterSet = type(pytest.param(0))


def exhaustive(every: Iterable[Any], keep: Collection[Any] | Callable[[Any], bool]) -> list[Any]:
    """All parameters for `pytest.mark.parametrize`, of which only some are fast.

    Args:
        every: one value each, a plain tuple of several, or a ``pytest.param``.
        keep: those that stay fast, or which it is true of.
    """
    values = list(every)
    if callable(keep):
        kept = [keep(one) for one in values]
    else:
        kept = [one in keep for one in values]
        missing = [one for one in keep if one not in values]
        assert not missing, f"these are no parameters: {missing}"
    assert any(kept), "nothing of this law would run at every change"
    return [_param(one, fast) for one, fast in zip(values, kept, strict=True)]


def each_once(*axes: Collection[Any]) -> set[tuple[Any, ...]]:
    """So many points of a product that every value of every axis is in one of them."""
    longest = max(map(len, axes))
    return set(zip(*(islice(cycle(axis), longest) for axis in axes), strict=True))


def _param(one: Any, fast: bool) -> Any:
    marks = () if fast else (pytest.mark.slow,)
    if isinstance(one, ParameterSet):
        return pytest.param(*one.values, id=one.id, marks=(*one.marks, *marks))
    return pytest.param(*(one if type(one) is tuple else (one,)), marks=marks)
