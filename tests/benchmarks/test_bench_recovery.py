"""The table of the recovery's steps has a row for each cut, and says what was not run or broke."""

from __future__ import annotations

from typing import Any

from benchmarks.studies.recovery import SHARES, WAYS, table


def cell(way: tuple[bool, float], change: float | None, *, steps: int = 240) -> Any:
    """A way of recovering one cut."""

    def told(change: float) -> dict[str, Any]:
        return {
            "procedural": {"change": change, "agreement": 1.0},
            "test": {"change": 1.0, "agreement": 100 * (1 - change)},
        }

    return {
        "network": "one",
        "ratio": 2.0,
        "steps": steps,
        "relative": way[0],
        "rate": way[1],
        "before": told(0.5),
        "after": None if change is None else told(change),
    }


def test_a_row_is_of_one_cut_and_a_column_of_one_way() -> None:
    cells = [cell(way, 0.01 * place) for place, way in enumerate(WAYS)]
    *_, row = table([*reversed(cells)]).splitlines()
    expected = [f"0.0{place}00 / {100 - place}.0" for place in range(len(WAYS))]
    assert row == f"| one | 2x | 240 | 0.5000 / 50.0 | {' | '.join(expected)} |"


def test_what_was_not_run_and_what_broke_are_said() -> None:
    first, second = table([cell(WAYS[0], 0.1), cell(WAYS[-1], None, steps=9)]).splitlines()[2:]
    assert first.count("not run") == len(SHARES)
    assert "| 2x | 9 |" in second
    assert second.endswith("| not finite |")
