"""Render the table of ``benchmarks.studies.fleet`` from its file alone."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.studies.published import RESULTS


def write_fleet_table(folder: Path = RESULTS) -> None:
    """Write ``fleet.md`` from ``fleet.json`` of ``folder``."""
    whole = json.loads((folder / "fleet.json").read_text())
    lines = [
        "| nodes | cells | failed | tasks lost with a node | slots busy | processor ms a cell | "
        "driver's peak, MiB (before) |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['nodes']} | {row['cells']} | {row['failed']} | {row['tasks_lost']} | "
        f"{row['slots_busy']:.1%} | {row['processor_ms_a_cell']:.1f} | {row['peak_mib']} "
        f"({row['peak_mib_before']}) |"
        for row in whole["simulations"]
    ]
    page = whole["page"]
    if page is not None:
        size = whole["simulations"][-1]["page_bytes"] / 1e6
        lines += [
            "",
            f"The page of the last row has {size:.1f} MB; headless Chromium had loaded it after "
            f"{page['load_event_s']:.2f} s, and drew a search over all rows in "
            f"{page['filter_ms']:.0f} ms.",
        ]
    (folder / "fleet.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write_fleet_table()
