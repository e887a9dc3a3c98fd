"""The cells in ``results/architectures.json``, one a line, and the table made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.architectures.cells import RATIO, SEED, Cell
from benchmarks.architectures.table import TABLE
from benchmarks.rendering.architectures_table import markdown
from edgeclean.networks.state import JsonValue

RESULTS = Path(__file__).parents[1] / "results" / "architectures.json"
COMMAND = "python -m benchmarks.architectures"
Key = tuple[str, str]


def known_cells(path: Path = RESULTS) -> dict[Key, Cell]:
    """Read the cells by name and input."""
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    return {(cell["name"], cell["input"]): cell for cell in cells if cell["name"] in TABLE}


def write_results(
    cells: Mapping[Key, Cell], environment: Mapping[str, JsonValue], path: Path = RESULTS
) -> None:
    """Write the cells in the table's order, and the Markdown beside them."""
    order = {name: index for index, name in enumerate(TABLE)}
    ordered = [cells[key] for key in sorted(cells, key=lambda key: (order[key[0]], key[1]))]
    head = {"command": COMMAND, "seed": SEED, "ratio": RATIO, "environment": environment}
    lines = ",\n".join(json.dumps(cell, sort_keys=True) for cell in ordered)
    whole = json.dumps(head, indent=1)[:-2] + f',\n "cells": [\n{lines}\n]}}\n'
    for place, text in ((path, whole), (path.with_suffix(".md"), markdown(json.loads(whole)))):
        beside = place.with_name(place.name + ".new")
        beside.write_text(text)
        beside.replace(place)  # whole or not at all, whenever it is interrupted
