"""Keep the columns of a suite, ``results/SUITE/seed-S/ATTACK.json``, and write its tables.

A column is one attacked network and the cells (defences) that have been run on it. It is written
after every cell and meant to be committed, so that another session goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.defences.base import DefenceEntry
from benchmarks.defences.table import every_defence
from benchmarks.metrics import defence_effectiveness
from benchmarks.rendering import tables
from benchmarks.suite.cells import Cell, write_whole
from benchmarks.suite.suites import SUITES, Suite
from edgeclean.networks.state import JsonValue, settings_as_json

Column = dict[str, JsonValue]


def column_path(results: Path, suite: Suite, attack: str, seed: int) -> Path:
    """Return the path of a column's file."""
    return results / suite.name / f"seed-{seed}" / f"{attack}.json"


def read_column(path: Path, suite: Suite) -> Column | None:
    """Read a column from its file; None where there is none.

    Raises:
        ValueError: the column was measured with other settings of the suite.
    """
    if not path.exists():
        return None
    column: Column = json.loads(path.read_text())
    if column["part"] != identity(suite):
        raise ValueError(
            f"{path} was measured with other settings of {suite.name}; run it again with --fresh"
        )
    return column


def is_current(cell: Cell, entry: DefenceEntry) -> bool:
    """Return whether the cell was measured with the defence's present settings."""
    return bool(cell["settings"] == plain_settings(entry))


def plain_settings(entry: DefenceEntry) -> dict[str, JsonValue]:
    """Return the settings of a defence, as read back from a JSON file."""
    names = [getattr(one, "RECORDED_AS", type(one).__name__) for one in entry.settings]
    return as_read(dict(zip(names, map(settings_as_json, entry.settings), strict=True)))


def columns_of(suite: Suite, results: Path) -> list[Column]:
    """Return every column of the suite that is there, in the table's order."""
    paths = (
        column_path(results, suite, attack, seed)
        for seed in suite.seeds
        for attack in suite.attacks
    )
    return [column for path in paths if (column := read_column(path, suite)) is not None]


def finished_cells(suite: Suite, results: Path) -> list[Cell]:
    """Return the cells of the columns, in the table's order, each with its DER.

    ``stale`` marks those whose defence has other settings now.
    """
    entries = every_defence(suite.settings)
    cells: list[Cell] = []
    for column in columns_of(suite, results):
        held = column["cells"]
        cells += [
            {**held[name], **({} if is_current(held[name], entries[name]) else {"stale": True})}
            for name in suite.defences
            if name in held
        ]
    return with_der(cells)


def with_der(cells: list[Cell]) -> list[Cell]:
    """Return each cell with its DER against the undefended network of its attack and seed."""
    before = {(c["attack"], c["seed"]): c for c in cells if c["defence"] == "none"}
    return [{**c, "der": _der(before.get((c["attack"], c["seed"])), c)} for c in cells]


def record_of(
    name: str, results: Path, known: Mapping[str, tuple[Suite, ...]] = SUITES
) -> tables.Record:
    """Return all that the tables of a suite show, from its columns."""
    suites, whole = known[name], results / name / "whole.json"
    return {
        "suite": name,
        "command": f"python -m benchmarks.suite {name}",
        "parts": [
            {**identity(suite), "seeds": list(suite.seeds), **_asked(suite)} for suite in suites
        ],
        "whole": json.loads(whole.read_text()) if whole.exists() else None,
        "columns": [
            {key: value for key, value in column.items() if key not in ("part", "cells")}
            for suite in suites
            for column in columns_of(suite, results)
        ],
        "cells": [cell for suite in suites for cell in finished_cells(suite, results)],
    }


def write_tables(
    name: str, results: Path = tables.RESULTS, known: Mapping[str, tuple[Suite, ...]] = SUITES
) -> None:
    """Write ``NAME.md`` from the columns of a suite, which can have several data sets."""
    text = tables.markdown(record_of(name, results, known))
    write_whole(results / f"{name}.md", text.removesuffix("\n"))


def identity(suite: Suite) -> dict[str, JsonValue]:
    """Return the facts that all columns depend on; cells hold their defences' settings."""
    return as_read(
        {
            "name": suite.name,
            "data_set": suite.data_set,
            "spec": asdict(suite.spec),
            "training": asdict(suite.training),
            "train_images": suite.train_images,
            "test_images": suite.test_images,
            "clean_images": suite.clean_images,
        }
    )


def network_identity(suite: Suite, seed: int, attack: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the facts that an attacked network depends on; ``attack`` are the attack's own."""
    whole = identity(suite)
    kept = {key: whole[key] for key in ("data_set", "spec", "training", "train_images")}
    return as_read({**kept, "seed": seed, "attack": attack})


def as_read(facts: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return facts as read back from a JSON file, to be compared with those of one."""
    plain: dict[str, JsonValue] = json.loads(json.dumps(facts))
    return plain


def main() -> None:
    """Write the tables of every suite that has columns."""
    argparse.ArgumentParser(
        description="Write the tables of every suite from its columns."
    ).parse_args()
    for name, suites in SUITES.items():
        if any(columns_of(suite, tables.RESULTS) for suite in suites):
            write_tables(name)


def _asked(suite: Suite) -> dict[str, list[str]]:
    """Return the whole table's rows and columns, so that missing cells are seen."""
    return {"attacks": list(suite.attacks), "defences": list(suite.defences)}


def _der(before: Cell | None, after: Cell) -> float | None:
    if before is None or "asr" not in after:
        return None
    shares = [cell[key]["percent"] / 100 for cell in (before, after) for key in ("acc", "asr")]
    return round(defence_effectiveness(*shares), 4)


if __name__ == "__main__":
    main()
