"""Settings that check themselves: every field has a type and a range, and is refused in one line.

::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class ScanSettings(Settings):
        steps: int = setting(100, at_least=1, at_most=10**6)
        mode: Literal["fast", "full"] = "fast"

The type is the annotation's: a Literal and a bool need no range, numbers are always finite. A whole
number is taken where a float is asked and a list where a tuple is; nothing else is converted. What
a list of any length names, it names once.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import re
import types
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeclean.errors import UsageError
from edgeclean.files.text import printable, shown

MOST_NAME = 200  # characters of a name or path, where nothing narrower is known
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_LIMITS = "limits"  # the key of a field's metadata
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a field beside its type; of a tuple or table, those of each entry.

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
        """Return whether a number is finite and within the limits."""
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
            and (isinstance(number, int) or math.isfinite(number))
        )

    def in_words(self) -> str:
        """Return such as "from 0 to 1" or "above 0 and below 1"; empty where there are none."""
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


class Settings:
    """The base of every settings class, which is a frozen, keyword-only dataclass."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Check every field, then all together.

        Raises:
            UsageError: a field has the wrong type or lies outside of its range, or two fields
                contradict each other.
        """
        for name, (hint, limits) in fields_of(type(self)).items():
            object.__setattr__(self, name, checked(hint, getattr(self, name), name, limits))
        self.check_together()

    def check_together(self) -> None:
        """Refuse fields that contradict each other; by default none do.

        Raises:
            UsageError: two fields contradict each other.
        """


def setting(  # noqa: PLR0913 - the kinds of limits are the interface
    default: T,
    *,
    at_least: float | int | None = None,
    above: float | int | None = None,
    at_most: float | int | None = None,
    below: float | int | None = None,
    one_of: Sequence[str] = (),
    longest: int | None = None,
    entries: tuple[int, int] | None = None,
) -> T:
    """Declare a field of a settings class with its default and its range; see `Limits`."""
    limits = Limits(
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
        one_of=tuple(one_of),
        longest=longest,
        entries=entries,
    )
    metadata = {_LIMITS: limits}
    if isinstance(default, dict):  # which dataclasses refuse as a default: it could be changed
        made: Any = dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    else:
        made = dataclasses.field(default=default, metadata=metadata)
    return made  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDescription:
    """One field of a settings class, for a table of all of them.

    Attributes:
        name: the name as it is written.
        type: the type in words, such as "a whole number".
        default: the value, or None for a table of settings.
        range: the range in words, such as "from 1 to 10^6"; empty where the type has no limits.
        text: the first sentence about it in the docstring.
        hint: the annotation itself.
        limits: the limits declared beside it.
    """

    name: str
    type: str
    default: Any
    range: str
    text: str
    hint: Any
    limits: Limits


def describe(settings_class: type) -> tuple[FieldDescription, ...]:
    """Describe every field of a settings class, in order."""
    texts: dict[str, str] = {}
    for one in reversed(settings_class.__mro__):  # what a class adds is in its own docstring
        texts |= _attribute_texts(one)
    fields = {one.name: one for one in dataclasses.fields(settings_class)}
    return tuple(
        FieldDescription(
            name=name,
            type=type_in_words(hint),
            default=_default_of(fields[name]),
            range=limits.in_words(),
            text=texts.get(name, ""),
            hint=hint,
            limits=limits,
        )
        for name, (hint, limits) in fields_of(settings_class).items()
    )


def fields_of(settings_class: type) -> dict[str, tuple[Any, Limits]]:
    """Return the annotation and the limits of every field of a settings class, by name."""
    own: Any = settings_class  # mypy takes no class for hashable
    return dict(_fields(own))


def checked(hint: Any, value: Any, name: str, limits: Limits = NO_LIMITS) -> Any:
    """Return the value as the type that is asked, within its limits.

    Raises:
        UsageError: it is not; one line names the field, what was got and what is allowed.
    """
    if hint is Any:
        return value
    for choice in choices_of(hint):
        if value is None and choice is type(None):
            return None
        if _is_of(choice, value):
            return _within(choice, value, name, limits, hint)
    _refuse(name, value, hint, limits)


def without_none(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return only what was given; nested tables in which nothing was are left out as well."""
    kept = {}
    for key, entry in entries.items():
        below = without_none(entry) if isinstance(entry, Mapping) else entry
        if below is not None and below != {}:
            kept[key] = below
    return kept


def choices_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union; of another annotation, itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def type_in_words(hint: Any) -> str:
    """Return such as "a whole number" or "a list, each entry a text"."""
    return " or ".join(_one_type_in_words(one) for one in choices_of(hint) if one is not type(None))


@cache
def _fields(settings_class: Any) -> dict[str, tuple[Any, Limits]]:
    hints = get_type_hints(settings_class)
    return {
        one.name: (hints[one.name], one.metadata.get(_LIMITS, NO_LIMITS))
        for one in dataclasses.fields(settings_class)
    }


def _is_of(hint: Any, value: Any) -> bool:
    """Return whether the value has the type; range and entries are checked afterwards."""
    origin = get_origin(hint)
    if origin is Literal:
        return isinstance(value, str | int) and value in get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _within(hint: Any, value: Any, name: str, limits: Limits, asked: Any) -> Any:
    """Return a value of the right type, which must lie within the limits as well."""
    if get_origin(hint) is tuple:
        return _entries_within(get_args(hint), value, name, limits, asked)
    if get_origin(hint) in (dict, Mapping):
        inside = get_args(hint)[1]
        _check_count(name, len(value), limits)
        return {str(key): checked(inside, one, f"{name}: {key}"[:MOST_NAME], limits)
                for key, one in value.items()}  # fmt: skip
    if hint in (int, float):
        if not limits.hold(value):
            _refuse(name, value, asked, limits)
        try:
            return hint(value)
        except OverflowError:
            _refuse(name, value, asked, limits)
    if hint is str:
        too_long = limits.longest is not None and len(value) > limits.longest
        if too_long or (limits.one_of and value not in limits.one_of):
            _refuse(name, value, asked, limits)
    return value


def _entries_within(
    inside: tuple[Any, ...], value: Sequence[Any], name: str, limits: Limits, asked: Any
) -> tuple[Any, ...]:
    repeated = inside[1:] == (...,)
    if not repeated and len(inside) != len(value):
        _refuse(name, value, asked, limits)
    _check_count(name, len(value), limits)
    hints = inside[:1] * len(value) if repeated else inside
    taken = tuple(
        checked(hint, one, f"{name}[{index}]", limits)
        for index, (hint, one) in enumerate(zip(hints, value, strict=True))
    )
    if repeated and len(set(taken)) < len(taken):
        ((again, _),) = Counter(taken).most_common(1)
        raise UsageError(f"{printable(name)} has {shown(again)} twice; name it once")
    return taken


def _check_count(name: str, count: int, limits: Limits) -> None:
    if limits.entries is not None and not limits.entries[0] <= count <= limits.entries[1]:
        least, most = limits.entries
        raise UsageError(f"{name} has {count} entries; it must have {least} to {most}")


def _refuse(name: str, value: object, hint: Any, limits: Limits) -> NoReturn:
    choices = choices_of(hint)
    several = {int, float} & {*choices} and str in choices  # whose limits are not each other's
    parts = [one for one in choices if one is not type(None)] if several else [hint]
    allowed = ", or ".join(_allowed(one, limits) for one in parts)
    if type(None) in choices:
        allowed += ", or nothing"
    raise UsageError(f"{printable(name)} is {shown(value)}; it must be {allowed}")


def _allowed(hint: Any, limits: Limits) -> str:
    """Return such as "a whole number from 1 to 9", with the limits of that type alone."""
    if hint in (int, float):
        limits = dataclasses.replace(limits, longest=None, one_of=())
    elif hint is str:
        limits = Limits(one_of=limits.one_of, longest=limits.longest)
    words = (type_in_words(hint), limits.in_words())
    return (", " if limits.one_of else " ").join(word for word in words if word)


def _one_type_in_words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(word) for word in get_args(hint))
    if origin is tuple:
        inside = get_args(hint)
        if inside[1:] == (...,):
            return "a list, each entry " + _one_type_in_words(inside[0])
        each = dict.fromkeys(type_in_words(one) for one in inside)
        return f"a list of {len(inside)}, each " + " or ".join(each)
    if dataclasses.is_dataclass(hint) or origin in (dict, Mapping):
        return "a table"
    return _WORDS.get(hint, str(hint))


def _number(edge: float | int) -> str:
    """Write a number; powers of 10 and 2 as such: 2^63-1, 10^6."""
    if isinstance(edge, int) and edge >= 10**6:
        for base in (10, 2):
            for less in (0, 1):
                power = round(math.log(edge + less, base))
                if base**power == edge + less:
                    return f"{base}^{power}" + ("-1" if less else "")
    return f"{edge:g}" if isinstance(edge, float) else str(edge)


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is dataclasses.MISSING:
        return None
    made = field.default_factory()
    return None if dataclasses.is_dataclass(made) else made


def _attribute_texts(settings_class: type) -> dict[str, str]:
    """Return the first sentence of every entry of a docstring's attributes."""
    text = inspect.cleandoc(settings_class.__doc__ or "")  # its own, and not its parent's
    lines = text.partition("Attributes:\n")[2].splitlines()
    texts: dict[str, str] = {}
    name = ""
    for line in lines:
        begins = re.match(r"    (\w+): (.*)", line)
        if begins:
            name, texts[begins[1]] = begins[1], begins[2]
        elif line.startswith("     ") and name:
            texts[name] += " " + line.strip()
        elif line.strip():
            break
    return {
        name: re.split(r"(?<=\.)\s+(?=[A-Z])", one, maxsplit=1)[0] for name, one in texts.items()
    }
