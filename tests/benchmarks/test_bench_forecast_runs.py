"""What runs were told beforehand is put beside what they lost, each network's purification once."""

from __future__ import annotations

from typing import Any

from benchmarks.rendering.forecast_table import runs


def cell(ratio: float, lost: float, told: tuple[float, float, float] | None) -> dict[str, Any]:
    names = ("expected", "low", "high")
    return {
        "network": "n",
        "seed": 1,
        "ratio_asked": ratio,
        "before": {"acc": 90.0},
        "purified": {"acc": 89.0},
        "compressed": {"acc": 90.0 - lost},
        "forecast": {
            "purified": dict(zip(names, (0.5, -1.0, 2.0), strict=True)),
            "compressed": dict(zip(names, told or (None, None, None), strict=True)),
        },
    }


def test_each_state_is_counted_once_and_a_loss_outside_is_outside() -> None:
    text = runs([cell(2, 3.0, (2.0, 0.0, 4.0)), cell(4, 9.0, (5.0, 2.0, 8.5)), cell(8, 9.0, None)])
    assert text.count("| n | 1 | purified | 1.0 | 0.5 (-1.0 to 2.0) | yes |") == 1
    assert "| n | 1 | compressed 2x | 3.0 | 2.0 (0.0 to 4.0) | yes |" in text
    assert "| n | 1 | compressed 4x | 9.0 | 5.0 (2.0 to 8.5) | no |" in text
    assert "| n | 1 | compressed 8x | 9.0 | nothing | - |" in text
    assert "| purified | 1 | 0.50 | 1 |" in text
    assert "| compressed 4x | 1 | 4.00 | 0 |" in text
    assert "compressed 8x | 0" not in text  # an error of none is no error of zero


def test_cells_of_before_forecasts_were_noted_are_left_out() -> None:
    old = cell(2, 3.0, None)
    del old["forecast"]
    assert "| n |" not in runs([old])
