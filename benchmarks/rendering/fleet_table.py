"""Render the tables of ``benchmarks.studies.fleet`` and ``fleet_zoo`` from their file alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.environment import wall_seconds
from benchmarks.studies.published import RESULTS

Whole = Mapping[str, Any]


def write_fleet_table(folder: Path = RESULTS) -> None:
    """Write ``fleet.md`` from ``fleet.json`` of ``folder``."""
    whole = json.loads((folder / "fleet.json").read_text())
    parts = []
    if "simulations" in whole:
        parts.append("\n".join(_simulated(whole)))
    if "zoo" in whole:
        parts.append("\n".join(_zoo(whole["zoo"])))
    (folder / "fleet.md").write_text("\n\n".join(parts) + "\n")


def _simulated(whole: Whole) -> Iterator[str]:
    yield (
        "| nodes | cells | failed | tasks lost with a node | slots busy | processor ms a cell | "
        "driver's peak, MiB (before) |"
    )
    yield "|---|---|---|---|---|---|---|"
    for row in whole["simulations"]:
        yield (
            f"| {row['nodes']} | {row['cells']} | {row['failed']} | {row['tasks_lost']} | "
            f"{row['slots_busy']:.1%} | {row['processor_ms_a_cell']:.1f} | {row['peak_mib']} "
            f"({row['peak_mib_before']}) |"
        )
    page = whole["page"]
    if page is not None:
        size = whole["simulations"][-1]["page_bytes"] / 1e6
        yield ""
        yield (
            f"The page of the last row has {size:.1f} MB; headless Chromium had loaded it after "
            f"{page['load_event_s']:.2f} s, and drew a search over all rows in "
            f"{page['filter_ms']:.0f} ms."
        )


def _zoo(zoo: Whole) -> Iterator[str]:
    """Yield the table of the published networks, as far as they were measured."""
    engines, alone = zoo["engines"], zoo["alone"]
    if "local" not in engines or not alone:
        yield "The published networks as a fleet: not yet measured."
        return
    whole = separate_seconds(zoo)
    yield (
        "| the published networks | cells done | scans | wall s | of the separate runs | "
        "places busy | beside tasks, s a cell |"
    )
    yield "|---|---|---|---|---|---|---|"
    cells = engines["local"]["cells"]
    yield f"| {len(cells)} separate runs, one after another (multiplied) | - | {len(cells)} | {whole:.0f} | 100% | - | - |"  # noqa: E501
    for name, run in engines.items():
        counts, jobs = run["counts"], zoo["asked"]["jobs"]
        busy = _task_seconds(run) / (jobs * run["wall_s"])
        beside = (jobs * run["wall_s"] - _task_seconds(run)) / counts["cells"]
        yield (
            f"| a fleet, engine {name} | {counts['done']} of {counts['cells']} | {run['scans']} | "
            f"{wall_seconds(run)} | {run['wall_s'] / whole:.0%} | {busy:.0%} | {beside:.1f} |"
        )
    measured = ", ".join(f"{one['cell']} {wall_seconds(one)} s" for one in alone)
    equal = sum(one["sha256"] == cells[one["cell"]]["sha256"] for one in alone)
    yield ""
    yield (
        f"`{zoo['command']}`, one thread a task. Measured of the separate runs: {measured}; the "
        "others are multiplied, by what their tasks took in the fleet. A loop of two at once would "
        "take less. The same bytes of `model.onnx` and `manifest.json`: "
        f"{equal} of {len(alone)} separate runs and the fleet{_between(engines)}."
    )


def separate_seconds(zoo: Whole) -> float:
    """Return what separate runs of all cells would take: their tasks, scaled as those measured."""
    cells = zoo["engines"]["local"]["cells"]
    tasks = {
        name: (one["network_seconds"] or 0) + (one["seconds"] or 0) for name, one in cells.items()
    }
    alone = {one["cell"]: one["wall_s"] for one in zoo["alone"]}
    scale = sum(alone.values()) / sum(tasks[name] for name in alone)
    return scale * sum(tasks.values())


def _task_seconds(run: Whole) -> float:
    """Return what all tasks of a fleet took; a network's is one."""
    networks = {
        name.partition("/")[0]: one["network_seconds"] for name, one in run["cells"].items()
    }
    cells = [one["seconds"] for one in run["cells"].values()]
    return sum(one or 0.0 for one in (*networks.values(), *cells))


def _between(engines: Whole) -> str:
    """Say how many cells are alike on both engines."""
    if len(engines) < 2:
        return ""
    first, second = (one["cells"] for one in engines.values())
    done = [name for name in first if first[name]["state"] == second[name]["state"] == "done"]
    equal = sum(first[name]["sha256"] == second[name]["sha256"] for name in done)
    return f", {equal} of {len(done)} cells on both engines"


if __name__ == "__main__":
    write_fleet_table()
