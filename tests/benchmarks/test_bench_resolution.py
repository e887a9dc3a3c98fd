"""The table of smaller images marks the size that the planner takes, and says what was not run."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.studies.resolution import table


def cell(side: int, procedural: float, tried: float, *, recovered: float | None = 80.0) -> Any:
    """A row of one network, whose own size is 32."""

    def told(change: float) -> dict[str, float]:
        return {"change": change, "agreement": 70.0}

    return {
        "network": "one",
        "ratio": 2.0,
        "resolution": [side, side],
        "own": side == 32,
        "procedural": told(procedural),
        "tried": told(tried),
        "inverted": told(0.5),
        "test": told(0.5),
        "recovered": None if recovered is None else {"change": 0.1, "agreement": recovered},
    }


@pytest.mark.parametrize(
    ("smaller", "taken"),
    [
        ((0.80, 0.80), "24x24"),  # clearly less, twice
        ((0.80, 0.95), "32x32"),  # what ranks lost came back
        ((0.95, 0.50), "32x32"),  # never tried
        ((0.85, 0.50), "24x24"),  # the second, and the better one in the end
    ],
)
def test_the_size_that_is_taken_changes_clearly_less_before_and_after(
    smaller: tuple[float, float], taken: str
) -> None:
    sizes = [cell(28, 0.97, 0.97), cell(20, 0.79, 0.92), cell(24, *smaller)]
    text = table([cell(32, 1.0, 1.0), *sizes])
    assert [line for line in text.splitlines() if "(taken)" in line] == [
        line for line in text.splitlines() if f"| {taken} (taken) |" in line
    ]
    assert text.count("(taken)") == 1


def test_a_recovery_that_was_not_run_is_said() -> None:
    assert table([cell(32, 1.0, 1.0, recovered=None)]).endswith("| 70.0 | not run |")
