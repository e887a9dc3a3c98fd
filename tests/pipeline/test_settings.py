"""Every field of every settings class refuses what it cannot bear, however it is given."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

import edgeclean
import exporters
from edgeclean.config import PipelineSettings, read_config, settings_from
from edgeclean.errors import UsageError
from edgeclean.files.text import shown
from edgeclean.fleet.catalogue import NetworkEntry
from edgeclean.settings import FieldDescription, Limits, Settings, choices_of, describe, setting

HUGE = 16**20_000 - 1  # Python refuses to write it in decimal
DEEP: list[Any] = []
for _ in range(3000):
    DEEP = [DEEP]


def settings_classes() -> list[type]:
    """Of both packages: every class that is a `Settings`, or is named as if it were one."""
    found = set()
    for package in (edgeclean, exporters):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".kit" in module.name or module.name.endswith("__main__"):
                continue
            for _, one in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                ours = one.__module__.partition(".")[0] in ("edgeclean", "exporters")
                named = one.__name__.endswith(("Settings", "LoadLimits", "Policy"))
                if ours and (issubclass(one, Settings) or named) and one is not Settings:
                    found.add(one)
    return sorted(found, key=lambda one: f"{one.__module__}.{one.__name__}")


CLASSES = [one for one in settings_classes() if issubclass(one, Settings)]
FIELDS = [(one, field) for one in CLASSES for field in describe(one)]
# What a table must name, because nothing goes without it.
WITHOUT_DEFAULT: dict[type, dict[str, Any]] = {NetworkEntry: {"checkpoint": "net.pth"}}
IDS = [f"{one.__name__}.{field.name}" for one, field in FIELDS]


def test_every_settings_class_checks_itself() -> None:
    plain = {one.__name__ for one in settings_classes() if not issubclass(one, Settings)}
    assert plain == set()
    assert len(CLASSES) >= 21


def built(settings_class: Any, **given: Any) -> Any:
    """As a user's program builds it: under test, jaxtyping looks at the types before."""
    made = settings_class.__new__(settings_class)
    inspect.unwrap(settings_class.__init__)(made, **given)
    return made


def wrong_values(hint: Any, limits: Limits) -> Iterator[Any]:
    """What a field of this kind and these limits must refuse."""
    kinds = [one for one in choices_of(hint) if one is not type(None)]
    yield from (DEEP, {"a": 1}, [math.nan] * 3, object())
    if type(None) not in choices_of(hint):
        yield None
    if not any(one in (int, float) for one in kinds):
        yield from (3, HUGE, 0.5, math.nan, math.inf)
    if not any(one is str or get_origin(one) is Literal for one in kinds):
        yield from ("three", "")
    if bool not in kinds:
        yield from (True, False)
    for kind in kinds:
        yield from (
            one for one in wrong_values_of(kind, limits) if not (str in kinds and one == "3")
        )


def wrong_values_of(kind: Any, limits: Limits) -> Iterator[Any]:
    if get_origin(kind) is Literal:
        yield from ("no such word", *(word.upper() for word in get_args(kind)))
    elif get_origin(kind) is tuple:
        inside = get_args(kind)[0]
        yield from ([one] for one in (3 if inside is str else "x", None, DEEP))
        assert limits.entries is not None
        yield from ([] if limits.entries[0] else 7, "text", ["x"] * (limits.entries[1] + 1))
        if limits.one_of:
            yield ["no such word"]
        right = (limits.one_of or get_args(inside) or ("a name",))[0]
        yield [right, right]
    elif get_origin(kind) is Mapping:
        assert limits.entries is not None
        yield {str(one): 1 for one in range(limits.entries[1] + 1)}
        inside = get_args(kind)[1]
        yield from ({"a": one} for one in (None, "text", [1.5] * len(get_args(inside)), DEEP))
        numbers = beyond(get_args(inside)[0], limits)
        yield from ({"a": [one] * len(get_args(inside))} for one in numbers)
        yield from ({"a": [1] * count} for count in (0, 1, len(get_args(inside)) + 1))
    elif kind is str:
        yield from (["text"], b"text")
        yield "x" * ((limits.longest or 100) + 1)
    elif kind in (int, float):
        yield from (math.nan, math.inf, -math.inf, HUGE, -HUGE, "three", "3", [3])
        yield from beyond(kind, limits)
        if kind is int:
            yield 1.5


def beyond(kind: Any, limits: Limits) -> Iterator[float | int]:
    """The first numbers outside of the range; without a range on both sides there are none."""
    assert (limits.at_least is None) != (limits.above is None), "no lower end"
    assert (limits.at_most is None) != (limits.below is None), "no upper end"
    if limits.at_least is not None:
        yield limits.at_least - 1 if kind is int else math.nextafter(limits.at_least, -math.inf)
    if limits.above is not None:
        yield kind(limits.above)
    if limits.at_most is not None:
        yield limits.at_most + 1 if kind is int else math.nextafter(limits.at_most, math.inf)
    if limits.below is not None:
        yield kind(limits.below)


@pytest.mark.parametrize(("settings_class", "field"), FIELDS, ids=IDS)
def test_what_a_field_cannot_bear_is_refused_by_name(
    settings_class: Any, field: FieldDescription
) -> None:
    count = 0
    for value in wrong_values(field.hint, field.limits):
        for make in (
            lambda value=value: built(settings_class, **{field.name: value}),
            lambda value=value: settings_from(settings_class, {field.name: value}),
        ):
            if isinstance(value, Mapping) and dataclasses.is_dataclass(field.hint):
                continue  # a table, whose own keys are looked at
            with pytest.raises(UsageError) as refusal:
                make()
            said = str(refusal.value)
            assert field.name in said.replace("-", "_")  # as a file may write it
            assert len(said.splitlines()) == 1
            assert len(said) < 600
            count += 1
    assert count >= 10


@pytest.mark.parametrize(("settings_class", "field"), FIELDS, ids=IDS)
def test_every_field_has_a_type_that_says_all_or_a_range(
    settings_class: Any, field: FieldDescription
) -> None:
    for kind in choices_of(field.hint):
        assert is_bounded(kind, field.limits), "declare its range with setting(...)"
    made = getattr(settings_class(**WITHOUT_DEFAULT.get(settings_class, {})), field.name)
    assert field.default is None or made == field.default
    assert field.type
    assert field.text, "say in the docstring what it is"


def is_bounded(kind: Any, limits: Limits) -> bool:
    low = limits.at_least is not None or limits.above is not None
    high = limits.at_most is not None or limits.below is not None
    if kind in (int, float):
        return low and high
    if kind is str:
        return bool(limits.one_of) or limits.longest is not None
    if get_origin(kind) is tuple:
        return limits.entries is not None and is_bounded(get_args(kind)[0], limits)
    if get_origin(kind) is Mapping:
        inside = choices_of(get_args(get_args(kind)[1])[0])
        return limits.entries is not None and all(is_bounded(one, limits) for one in inside)
    return kind in (bool, type(None)) or get_origin(kind) is Literal or issubclass(kind, object)


def toml(value: Any) -> str | None:
    """The value as TOML; None where TOML has no such thing."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return hex(value) if value >= 0 else None if value < -(10**4000) else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return f'"{value}"'
    if value is DEEP:
        return "[" * 50 + "]" * 50
    if isinstance(value, list):
        inside = [toml(one) for one in value]
        return None if None in inside else "[" + ", ".join(map(str, inside)) + "]"
    return None


def pipeline_fields(settings_class: type, table: str = "") -> Iterator[tuple[str, Any]]:
    for field in describe(settings_class):
        if dataclasses.is_dataclass(field.hint):
            if issubclass(field.hint, Settings):  # type: ignore[arg-type]
                yield from pipeline_fields(field.hint, f"{table}.{field.name}".strip("."))
        else:
            yield table, field


@pytest.mark.parametrize(
    ("table", "field"),
    list(pipeline_fields(PipelineSettings)),
    ids=lambda one: getattr(one, "name", one),
)
def test_a_configuration_file_is_refused_alike(
    table: str, field: FieldDescription, tmp_path: Path
) -> None:
    path, heading, count = tmp_path / "e.toml", f"[{table}]\n" if table else "", 0
    for value in wrong_values(field.hint, field.limits):
        text = toml(value)
        if text is None:
            continue
        path.write_text(f"{heading}{field.name} = {text}\n", encoding="utf-8")
        with pytest.raises(UsageError, match=field.name) as refusal:
            settings_from(PipelineSettings, read_config(path))
        assert all(word in str(refusal.value) for word in table.split("."))
        count += 1
    assert count >= 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Oven(Settings):
    """An oven.

    Attributes:
        degrees: how hot it gets. It is a fan oven.
        minutes: how long, on
            a clock.
        shelves: by name.
    """

    degrees: float = setting(180.0, above=0, below=300)
    minutes: int = setting(20, at_least=1, at_most=10**6)
    shelves: tuple[str, ...] = setting(("middle",), one_of=("middle", "top"), entries=(1, 2))

    def check_together(self) -> None:
        if self.degrees > 250 and self.minutes > 60:
            raise UsageError("that would burn")


def test_settings_are_described_for_a_table() -> None:
    degrees, minutes, shelves = describe(Oven)
    assert (degrees.name, degrees.type, degrees.default) == ("degrees", "a number", 180.0)
    assert degrees.range == "above 0 and below 300"
    assert degrees.text == "how hot it gets."
    assert (minutes.range, minutes.text) == ("from 1 to 10^6", "how long, on a clock.")
    assert (shelves.type, shelves.range) == ("a list, each entry a text", "one of middle, top")


def test_a_refusal_says_what_was_got_and_what_is_allowed() -> None:
    for wrong, words in (
        ({"degrees": 300}, "degrees is 300; it must be a number above 0 and below 300"),
        ({"minutes": 0}, "minutes is 0; it must be a whole number from 1 to 10^6"),
        ({"shelves": ["low"]}, "shelves[0] is 'low'; it must be a text, one of middle, top"),
        ({"shelves": []}, "shelves has 0 entries; it must have 1 to 2"),
        ({"shelves": ["top", "top"]}, "shelves has 'top' twice; name it once"),
        ({"minutes": HUGE}, "minutes is a number of 80000 bits; it must be a whole number"),
        ({"degrees": 260, "minutes": 61}, "that would burn"),
    ):
        with pytest.raises(UsageError) as refusal:
            Oven(**wrong)  # type: ignore[arg-type]
        assert str(refusal.value).startswith(words)


def test_whole_numbers_and_lists_become_what_is_asked() -> None:
    oven = Oven(degrees=200, shelves=["top", "middle"])  # type: ignore[arg-type]
    assert type(oven.degrees) is float
    assert oven == Oven(degrees=200.0, shelves=("top", "middle"))
    assert hash(oven) == hash(Oven(degrees=200.0, shelves=("top", "middle")))
    with pytest.raises(UsageError, match="minutes is True"):
        dataclasses.replace(oven, minutes=True)


@pytest.mark.parametrize(
    "value",
    [HUGE, -HUGE, DEEP, math.nan, "\x1b[31m" * 10_000, b"x" * 10**6, {"a": DEEP}, object(), [HUGE]],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_shown_in_a_short_printable_line(value: object) -> None:
    __tracebackhide__ = True
    text = shown(value)
    assert 0 < len(text) <= 80
    assert text.isprintable()
