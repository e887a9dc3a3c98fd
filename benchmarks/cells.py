"""The cells of a suite on disk, and the record in ``results/`` that is made of them alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks import tables
from benchmarks.environment import environment
from benchmarks.metrics import defence_effectiveness
from benchmarks.suites import SUITES, Suite
from edgeclean.states import JsonValue

Cell = dict[str, JsonValue]


def attack_folder(folder: Path, suite: Suite, attack: str, seed: int) -> Path:
    """Where one attacked network and its cells lie."""
    return folder / suite.name / f"seed-{seed}" / attack


def finished_cells(suite: Suite, folder: Path) -> list[Cell]:
    """The cells that the folder holds, in the table's order, each with its DER."""
    paths = (
        attack_folder(folder, suite, attack, seed) / f"{defence}.json"
        for seed in suite.seeds
        for attack in suite.attacks
        for defence in suite.defences
    )
    return with_der([json.loads(path.read_text()) for path in paths if path.exists()])


def with_der(cells: list[Cell]) -> list[Cell]:
    """Each cell with its DER against the undefended network of the same attack and seed."""
    before = {(c["attack"], c["seed"]): c for c in cells if c["defence"] == "none"}
    return [{**c, "der": _der(before.get((c["attack"], c["seed"])), c)} for c in cells]


def write_record(name: str, folder: Path, results: Path = tables.RESULTS) -> None:
    """``NAME.json`` from the cells of all parts of a suite, its pictures, and its tables."""
    measured_in = environment()  # before the files below change the tree
    cells: list[Cell] = []
    pictures: dict[str, str] = {}
    for suite in SUITES[name]:
        cells += finished_cells(suite, folder)
        for attack in suite.attacks:
            source = attack_folder(folder, suite, attack, suite.seeds[0]) / "picture.png"
            if source.exists():
                pictures[attack] = f"pictures/{suite.name}-{attack}.png"
                (results / "pictures").mkdir(parents=True, exist_ok=True)
                (results / pictures[attack]).write_bytes(source.read_bytes())
    record = {
        "suite": name,
        "command": f"python -m benchmarks.suite {name}",
        "environment": measured_in,
        "parts": [
            {**identity(suite), "seeds": list(suite.seeds), "asked": _asked(suite)}
            for suite in SUITES[name]
        ],
        "pictures": pictures,
        "cells": cells,
    }
    write_whole(results / f"{name}.json", json.dumps(record, indent=1))
    tables.render(name, results)


def identity(suite: Suite) -> dict[str, JsonValue]:
    """What all cells of a suite depend on; a cell itself tells its defence's settings."""
    plain: dict[str, JsonValue] = json.loads(
        json.dumps(
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
    )
    return plain


def keep_identity(suite: Suite, folder: Path) -> None:
    """Write the suite's identity beside its cells, or compare it with the one that is there.

    Raises:
        ValueError: the folder holds cells of a suite with other settings.
    """
    path = folder / suite.name / "suite.json"
    if path.exists() and json.loads(path.read_text()) != identity(suite):
        raise ValueError(
            f"{path.parent} holds cells of {suite.name} with other settings; remove that folder or "
            "give another one"
        )
    write_whole(path, json.dumps(identity(suite), indent=1))


def write_whole(path: Path, text: str) -> None:
    """The file appears with all of its text or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(path)


def _asked(suite: Suite) -> dict[str, list[str]]:
    """The whole table's rows and columns, so that what is missing can be told."""
    return {"attacks": list(suite.attacks), "defences": list(suite.defences)}


def _der(before: Cell | None, after: Cell) -> float | None:
    if before is None or "asr" not in after:
        return None
    shares = [cell[key]["percent"] / 100 for cell in (before, after) for key in ("acc", "asr")]
    return round(defence_effectiveness(*shares), 4)
