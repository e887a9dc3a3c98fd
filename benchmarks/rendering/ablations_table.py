"""Render the table of ``benchmarks.studies.ablations`` from its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.studies.published import RESULTS


def write_ablations_table(folder: Path = RESULTS) -> None:
    """Write ``ablations.md`` from every ``ablations-NETWORK-seedS.json`` of ``folder``."""
    files = {
        path.stem.removeprefix("ablations-"): json.loads(path.read_text())["rows"]
        for path in sorted(folder.glob("ablations-*.json"))
    }
    # As they were run: no file's rows are sorted by name.
    rows = dict.fromkeys(row for rows in files.values() for row in rows)
    lines = [
        "| part | "
        + " | ".join(f"{name}: ACC / ASR, agreement, processor s" for name in files)
        + " |",
        "|---|" + "---|" * len(files),
    ]
    for row in rows:
        cells = " | ".join(_cell(rows.get(row)) for rows in files.values())
        lines.append(f"| {row} | {cells} |")
    (folder / "ablations.md").write_text("\n".join(lines) + "\n")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not yet run"
    agreement = f"{row['agreement']:.1f}" if "agreement" in row else "-"
    seconds = f"{row['processor_seconds']:.0f}" if "processor_seconds" in row else "-"
    return f"{row['acc']:.1f} / {row['asr']:.1f}, {agreement}, {seconds}"
