"""Every key of a fleet's catalogue, read from the classes that its reader builds."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

from markdown_tables import code, table
from setting_pages import meanings, ranges
from value_words import default_in_words, in_words

from edgeclean.fleet.catalogue import GoalEntry, NetworkEntry, NetworkOptions, TargetEntry

TABLES: dict[str, type] = {
    "`[defaults]`": NetworkOptions,
    "`[[networks]]`": NetworkEntry,
    "`[[targets]]`": TargetEntry,
    "`[[goals]]`": GoalEntry,
}


def reference() -> str:
    """A section for each table of a catalogue."""
    return "\n".join(_section(heading, owner) for heading, owner in TABLES.items())


def _section(heading: str, owner: type) -> str:
    hints, known, allowed = get_type_hints(owner), meanings(owner), ranges(owner)
    inherited = {
        one.name
        for above in owner.__bases__
        if dataclasses.is_dataclass(above)
        for one in dataclasses.fields(above)
    }
    rows = [
        (
            code(one.name.replace("_", "-")),
            in_words(hints[one.name]),
            default_in_words(one.default if one.default != () else None),
            allowed.get(one.name, ""),
            known.get(one.name, ""),
        )
        for one in dataclasses.fields(owner)
        if one.name not in inherited
    ]
    summary = " ".join((owner.__doc__ or "").partition("\n\n")[0].split())
    head = ["key", "type", "default", "range", "meaning"]
    return f"## {heading}\n\n{summary}\n\n{table(head, rows)}"
