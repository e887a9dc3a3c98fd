"""What each level of effort costs and keeps, as far as it has been measured."""

from __future__ import annotations

from benchmarks.rendering.demo_levels import Cell
from benchmarks.studies.effort import standard_cells, table

NOT_MEASURED = "The levels have not been measured against each other yet.\n"


def reference(known: dict[tuple[str, str, int], Cell]) -> str:
    """The study's own table, and the machine that its times are of; a sentence without cells."""
    if not known:
        return NOT_MEASURED
    machines = {
        (cell["environment"].get("processor", "unknown"), cell["environment"]["logical_cores"])
        for cell in known.values()
    }
    where = " and ".join(f"{name} with {cores} cores" for name, cores in sorted(machines))
    cells = [*known.values(), *standard_cells(known)]
    return f"{table(cells)}\nTimes are those of {where}, and of whatever else ran there.\n"
