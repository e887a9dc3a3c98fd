"""What a setting may be, and that in words."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a field takes beside its type; of a tuple or table, what each of its entries takes.

    Attributes:
        at_least: the least number.
        above: the number that all are greater than.
        at_most: the greatest number.
        below: the number that all are less than.
        one_of: the texts that are allowed; none for any.
        longest: the most characters of a text.
        entries: the least and the most entries of a tuple or table.
    """

    at_least: float | int | None = None
    above: float | int | None = None
    at_most: float | int | None = None
    below: float | int | None = None
    one_of: tuple[str, ...] = ()
    longest: int | None = None
    entries: tuple[int, int] | None = None

    def hold(self, number: float | int) -> bool:
        """Whether a number is finite and within."""
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
            and (isinstance(number, int) or math.isfinite(number))
        )

    def in_words(self) -> str:
        """Such as "from 0 to 1" or "above 0 and below 1"; empty where there are none."""
        if self.one_of:
            return "one of " + ", ".join(self.one_of)
        edges = (
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        )
        words = " and ".join(f"{word} {_number(edge)}" for word, edge in edges if edge is not None)
        if self.at_least is not None and self.at_most is not None:
            words = f"from {_number(self.at_least)} to {_number(self.at_most)}"
        length = "" if self.longest is None else f"of at most {self.longest} characters"
        return " or ".join(part for part in (words, length) if part)


NO_LIMITS = Limits()


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of another annotation, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def type_in_words(hint: Any) -> str:
    """Such as "a whole number" or "a list, each entry a text"."""
    return " or ".join(_one_type_in_words(one) for one in choices_of(hint) if one is not type(None))


def _one_type_in_words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(word) for word in get_args(hint))
    if origin is tuple:
        inside = get_args(hint)
        if inside[1:] == (...,):
            return "a list, each entry " + _one_type_in_words(inside[0])
        return f"a list of {len(inside)}, each " + _one_type_in_words(inside[0])
    if dataclasses.is_dataclass(hint) or origin in (dict, Mapping):
        return "a table"
    return _WORDS.get(hint, str(hint))


def _number(edge: float | int) -> str:
    """Round powers as such: 2^63-1, 10^6."""
    if isinstance(edge, int) and edge >= 10**6:
        for base in (10, 2):
            for less in (0, 1):
                power = round(math.log(edge + less, base))
                if base**power == edge + less:
                    return f"{base}^{power}" + ("-1" if less else "")
    return f"{edge:g}" if isinstance(edge, float) else str(edge)
