"""Write measured cells, each of which a study keeps as it is done."""

from __future__ import annotations

from pathlib import Path

from edgeclean.networks.state import JsonValue

Cell = dict[str, JsonValue]


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears with all of its text or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(path)
