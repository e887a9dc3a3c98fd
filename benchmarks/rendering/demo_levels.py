"""Print the closing lines of ``make demo``: the results of the levels of effort on its network.

``python -m benchmarks.rendering.demo_levels`` reads ``results/effort.json`` and measures nothing;
it needs nothing but Python, as the demo's environment has no tools of a developer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
EFFORT = RESULTS / "effort.json"
DEMO_NAME, DEMO_LEVEL = "demo", "quick"
Cell = dict[str, Any]


def known_cells() -> dict[tuple[str, str, int], Cell]:
    """Read the cells of ``results/effort.json``, by network, level and seed."""
    cells = json.loads(EFFORT.read_text())["cells"] if EFFORT.exists() else []
    return {(cell["network"], cell["level"], cell["seed"]): cell for cell in cells}


def closing_lines(known: dict[tuple[str, str, int], Cell]) -> list[str]:
    """Return a line for the demo's level and one for the default, each with its environment."""
    lines = [
        f"This was --effort {DEMO_LEVEL}. On the demo network, measured before on its test set:"
    ]
    for level in (DEMO_LEVEL, "standard"):
        cell = known.get((DEMO_NAME, level, 0))
        if cell is None:
            lines.append(
                f"  {level}: not measured yet (python -m benchmarks.studies.effort --level {level})"
            )
            continue
        after, cores = cell["compressed"], cell["environment"]["logical_cores"]
        lines.append(
            f"  {level:<9} accuracy {cell['before']['acc']:.1f} % -> {after['acc']:.1f} %, attack "
            f"succeeds {cell['before']['asr']:.1f} % -> {after['asr']:.1f} %, "
            f"{cell['wall_s'] / 60:.1f} min on {cores} cores"
        )
    return [*lines, f"  ({EFFORT.relative_to(Path(__file__).parents[2]).as_posix()})"]


def main() -> None:
    """Print the closing lines."""
    argparse.ArgumentParser(description="Print the closing lines of `make demo`.").parse_args()
    print("\n" + "\n".join(closing_lines(known_cells())))


if __name__ == "__main__":
    main()
