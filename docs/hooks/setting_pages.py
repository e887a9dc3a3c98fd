"""Every setting of every stage, read from the settings classes and their docstrings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_type_hints

from griffe import Docstring, DocstringSectionKind
from markdown_tables import code, table
from value_words import default_in_words, in_words

from edgeclean.config import PipelineSettings


def reference() -> str:
    """A section for each table of a configuration file."""
    return "\n".join(_section(name, owner) for name, owner in tables())


def tables(owner: type = PipelineSettings, name: str = "") -> Iterator[tuple[str, type]]:
    """The tables of a configuration file by dotted name; the one without a name comes first."""
    yield name, owner
    hints = get_type_hints(owner)
    for one in dataclasses.fields(owner):
        if dataclasses.is_dataclass(hints[one.name]):
            yield from tables(hints[one.name], f"{name}.{one.name}".removeprefix("."))


def meanings(owner: type) -> dict[str, str]:
    """What the class's docstring says of each of its fields."""
    sections = Docstring(owner.__doc__ or "").parse("google", warnings=False)
    return {
        attribute.name: " ".join(attribute.description.split())
        for section in sections
        if section.kind is DocstringSectionKind.attributes
        for attribute in section.value
    }


def _section(name: str, owner: type) -> str:
    summary = (owner.__doc__ or "").partition("\n\n")[0]
    heading = f"## `[{name}]`" if name else "## At the top of the file"
    hints, known, allowed = get_type_hints(owner), meanings(owner), ranges(owner)
    rows = [
        (
            code(one.name),
            in_words(hints[one.name]),
            default_in_words(_default(one)),
            allowed.get(one.name, ""),
            known.get(one.name, ""),
        )
        for one in dataclasses.fields(owner)
        if not dataclasses.is_dataclass(hints[one.name])
    ]
    head = ["setting", "type", "default", "range", "meaning"]
    if not any(row[3] for row in rows):
        head, rows = [*head[:3], head[4]], [(*row[:3], row[4]) for row in rows]  # type: ignore[misc]
    return f"{heading}\n\n{' '.join(summary.split())}\n\n{table(head, rows)}"


def ranges(owner: type) -> dict[str, str]:
    """The range of each field as `edgeclean.settings.describe` gives it; empty without that."""
    try:
        from edgeclean.settings import describe  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return {}
    return {one.name: one.range for one in describe(owner)}


def _default(one: dataclasses.Field[Any]) -> object:
    if one.default_factory is not dataclasses.MISSING:
        made = one.default_factory()
        return made if made else None
    return one.default
