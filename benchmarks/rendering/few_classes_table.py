"""Render what the scan says of networks of two and three classes, out of the results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
FEW_CLASSES = RESULTS / "few-classes.json"
TOOK = 80.0  # % of stamped images that an attack must reach to be counted
Cell = dict[str, Any]


def known_cells() -> dict[str, Cell]:
    """Return the networks that were scanned, by name."""
    if not FEW_CLASSES.is_file():
        return {}
    known: dict[str, Cell] = json.loads(FEW_CLASSES.read_text("utf-8"))
    return known


def write_results(cells: Mapping[str, Cell]) -> None:
    """Write the networks and their table."""
    FEW_CLASSES.write_text(json.dumps(cells, indent=1, sort_keys=True) + "\n", "utf-8")
    FEW_CLASSES.with_suffix(".md").write_text(table(cells), "utf-8")


def table(cells: Mapping[str, Cell]) -> str:
    """Return the counts of both halves, then every network."""
    environments = [cell["environment"] for cell in cells.values()]
    machines = sorted({one["processor"] for one in environments})
    codes = sorted({one["code"] for one in environments})
    lines = [
        f"`python -m benchmarks.studies.few_classes` on {', '.join(machines)} (one thread); "
        f"seed 0; code {', '.join(codes)}.",
        "",
        "| half | classes | clean | suspected all the same | attacked | named | missed |",
        "|---|---|---|---|---|---|---|",
    ]
    for half in ("choice", "report"):
        for classes in (2, 3):
            harmless, alarms, attacked, missed = counts_of(cells, half, classes)
            counts = (classes, harmless, alarms, attacked, attacked - missed, missed)
            if harmless or attacked:
                lines.append(f"| {half} | {' | '.join(map(str, counts))} |")
    lines += [
        "",
        f"Attacks that move less than {TOOK:g} % of stamped images are listed and not counted.",
        "",
        "| network | half | ACC | ASR | planted | suspected: class, score (search) |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(name, cell) for name, cell in sorted(cells.items())]
    return "\n".join(lines) + "\n"


def counts_of(cells: Mapping[str, Cell], half: str, classes: int) -> tuple[int, int, int, int]:
    """Return the clean networks and the suspected of them, the attacked and the missed of them."""
    own = [c for c in cells.values() if (c["half"], c["classes"]) == (half, classes)]
    clean = [cell for cell in own if cell["attack"] == "clean"]
    attacked = [cell for cell in own if cell["attack"] != "clean" and took(cell)]
    alarms = sum(cell["verdict"] == "suspected" for cell in clean)
    missed = sum(not named(cell) for cell in attacked)
    return len(clean), alarms, len(attacked), missed


def took(cell: Cell) -> bool:
    """Return whether the attack works on test images."""
    return bool(cell["rates"]["asr"]["percent"] >= TOOK)


def named(cell: Cell) -> bool:
    """Return whether the most suspicious finding is what was planted."""
    return bool(cell["suspects"]) and bool(cell["suspects"][0]["target"] == cell["target"])


def _row(name: str, cell: Cell) -> str:
    planted = "-" if cell["attack"] == "clean" else _target(cell["target"])
    asr = f"{cell['rates']['asr']['percent']:.1f}" if "asr" in cell["rates"] else "-"
    said = "; ".join(
        f"{_target(one['target'])}, {one['score']:.1f} ({one['search']})"
        for one in cell["suspects"]
    )
    acc = f"{cell['rates']['acc']['percent']:.1f}"
    return f"| {name} | {cell['half']} | {acc} | {asr} | {planted} | {said or 'not found'} |"


def _target(target: int | None) -> str:
    return "all-to-all" if target is None else str(target)
