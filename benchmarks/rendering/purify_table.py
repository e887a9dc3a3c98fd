"""Render the tables of ``benchmarks.studies.purify`` from its cells alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from statistics import mean

from benchmarks.studies.compress_zoo import TEST_IMAGES, Cell
from benchmarks.studies.published import RESULTS

SIZES = ("full", "2x", "4x")


def known_cells() -> dict[tuple[str, str, int], Cell]:
    """Read the cells of ``results/purify.json``, by network, method and seed."""
    path = RESULTS / "purify.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    return {(cell["network"], cell["method"], cell["seed"]): cell for cell in cells}


def lacks(cell: Cell | None, ratios: Sequence[float]) -> bool:
    """Return whether a cell is missing, or lacks one of these ratios."""
    if cell is None:
        return True
    if "left_out" in cell:
        return False
    return any(f"{ratio:g}x" not in cell and f"{ratio:g}x_refused" not in cell for ratio in ratios)


def write_results(cells: Sequence[Cell]) -> None:
    """Write ``results/purify.json`` and the two tables of ``results/purify.md``."""
    whole = {
        "command": "python -m benchmarks.studies.purify",
        "images": f"the first {TEST_IMAGES} of the CIFAR-10 test set",
        "cells": sorted(cells, key=lambda cell: (cell["network"], cell["method"], cell["seed"])),
    }
    (RESULTS / "purify.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    text = "\n".join([*_by_network(cells), "", *_by_method(cells)])
    (RESULTS / "purify.md").write_text(text + "\n")


def _by_network(cells: Sequence[Cell]) -> list[str]:
    lines = [
        "| network | method | seeds | scan: classes (highest score); true class | before | full "
        "| 2x | 4x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups = defaultdict(list)
    for cell in cells:
        groups[cell["network"], cell["method"]].append(cell)
    for (network, method), group in groups.items():
        states = " | ".join(_mean_rates(group, state) for state in ("before", *SIZES))
        lines.append(f"| {network} | {method} | {len(group)} | {_scan(group)} | {states} |")
    return lines


def _by_method(cells: Sequence[Cell]) -> list[str]:
    """Average over the networks of a group; the clean one's ASR is that of the probe's trigger."""
    lines = [
        "| method | networks | runs | size | ASR mean / worst | ACC lost mean / worst |",
        "|---|---|---|---|---|---|",
    ]
    methods = dict.fromkeys(cell["method"] for cell in cells)
    groups = dict.fromkeys(_group(cell) for cell in cells)
    for method, title, size in product(methods, groups, SIZES):
        done = [
            cell
            for cell in cells
            if cell["method"] == method and size in cell and _group(cell) == title
        ]
        if not done:
            continue
        asr = [cell[size]["asr"] for cell in done]
        lost = [cell["before"]["acc"] - cell[size]["acc"] for cell in done]
        lines.append(
            f"| {method} | {title} | {len(done)} | {size} | {mean(asr):.1f} / {max(asr):.1f} "
            f"| {mean(lost):.1f} / {max(lost):.1f} |"
        )
    return lines


def _group(cell: Cell) -> str:
    if cell["true_target"] is None:
        return "clean"
    return "backdoored" if cell["batchnorm"] else "backdoored, no BatchNorm"


def _mean_rates(group: Sequence[Cell], state: str) -> str:
    """Write mean ACC / ASR / RA in percent, the worst ASR of several seeds, and their number.

    Not every seed is run at every ratio.
    """
    done = [cell[state] for cell in group if state in cell]
    if not done:
        return "refused" if any(f"{state}_refused" in cell for cell in group) else ""
    acc, asr, ra = (f"{mean(rates[key] for rates in done):.1f}" for key in ("acc", "asr", "ra"))
    several = len(done) > 1 and state != "before"  # the network as it came is the same one
    worst = f" (worst {max(rates['asr'] for rates in done):.1f})" if several else ""
    seeds = "" if len(done) == len(group) else f", {len(done)} of {len(group)} seeds"
    return f"{acc} / {asr}{worst} / {ra}{seeds}"


def _scan(group: Sequence[Cell]) -> str:
    said = []
    for cell in group:
        if "verdict" not in cell:
            continue
        classes = ", ".join(map(str, cell["suspected"])) or "not found"
        score = "" if cell["score"] is None else f" ({cell['score']:.1f})"
        said.append(f"{classes}{score}")
    if not said:
        return ""
    target = group[0]["true_target"]
    true = "none" if target is None else target
    return f"{'; '.join(dict.fromkeys(said))}; true: {true}"
