"""Render what a forecast of lost accuracy is worth, out of the results alone.

``forecast.md`` says what it is worth on networks left out of the fit, ``forecast-runs.md`` what the
runs of `benchmarks.studies.compress_zoo` were told beforehand, beside what they lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def write_tables(folder: Path = RESULTS) -> None:
    """Write ``forecast.md`` from ``forecast.json``, ``forecast-runs.md`` from those of the zoo."""
    document = json.loads((folder / "forecast.json").read_text("utf-8"))
    (folder / "forecast.md").write_text(tables(document), "utf-8")
    cells = json.loads((folder / "compress-zoo.json").read_text("utf-8"))["cells"]
    (folder / "forecast-runs.md").write_text(runs(cells), "utf-8")


def runs(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each whole run that noted its forecast, and how far off they were."""
    told = [run for cell in cells if "forecast" in cell for run in _told(cell)]
    told = list(dict.fromkeys(told))  # a network is purified once for all ratios
    lines = [
        "| network | seed | state | ACC lost | told beforehand | within |",
        "|---|---|---|---|---|---|",
        *(one.row() for one in told),
        "",
        "| state | runs | mean error | within the interval |",
        "|---|---|---|---|",
    ]
    for state in dict.fromkeys(one.state for one in told):
        given = [one for one in told if one.state == state and one.expected is not None]
        error = sum(abs(one.expected - one.lost) for one in given if one.expected is not None)
        held = sum(one.held for one in given)
        if given:
            mean = f"{error / len(given):.2f}"
            lines.append(f"| {state} | {len(given)} | {mean} | {held} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Run:
    """What one state of a run lost, and what was told of it; None where nothing could be."""

    network: str
    seed: int
    state: str
    lost: float
    expected: float | None
    low: float | None
    high: float | None

    @property
    def held(self) -> bool:
        """Whether the loss lies in the interval."""
        return self.low is not None and self.high is not None and self.low <= self.lost <= self.high

    def row(self) -> str:
        """Return the row of the table."""
        told = "nothing"
        if self.expected is not None:
            told = f"{self.expected:.1f} ({self.low:.1f} to {self.high:.1f})"
        within = "-" if self.expected is None else "yes" if self.held else "no"
        network = f"{self.network} | {self.seed} | {self.state}"
        return f"| {network} | {self.lost:.1f} | {told} | {within} |"


def _told(cell: Mapping[str, Any]) -> Iterator[_Run]:
    for state, forecast in sorted(cell["forecast"].items(), reverse=True):
        at = f" {cell['ratio_asked']:g}x" if state == "compressed" else ""
        lost = cell["before"]["acc"] - cell[state]["acc"]
        ends = (forecast[key] for key in ("expected", "low", "high"))
        yield _Run(cell["network"], cell["seed"], state + at, lost, *ends)


def tables(document: dict[str, Any]) -> str:
    """Return the summary, what was tried, and every student."""
    learnt, machine = document["calibration"], document["environment"]
    columns = (
        "| network | state | ratio | steps | agree: synthetic / procedural, % | "
        "ACC before | lost | expected |"
    )
    lines = [
        f"`{document['command']}` on {machine['processor']} (one thread), seed {document['seed']}, "
        f"code {machine['code']}. {learnt['points']} states of {learnt['networks']} networks. On "
        f"networks left out: mean error {learnt['mean_error_points']:.2f} points, coverage of the "
        f"{learnt['level']:.0%} interval {learnt['coverage']:.1%}. What ships: "
        f"{learnt['slope']:.1f} x ({learnt['weight']:.1f} x share + {1 - learnt['weight']:.1f} x "
        f"distance)^{learnt['power']:g} points; half width {learnt['quantile']:.2f} x "
        f"({learnt['floor']:g} + {learnt['share']:g} x expected).",
        "",
        "| images, and what is looked at | mean error | of losses to 10 points | of whole runs | "
        "coverage | of losses to 10 points | mean half width |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, one in document["tried"].items():
        lines.append(
            f"| {title} | {one['mean_error']:.2f} | {one['mean_error_to_10_points']:.2f} | "
            f"{one['mean_error_of_whole_runs']:.2f} | {one['coverage']:.1%} | "
            f"{one['coverage_to_10_points']:.1%} | "
            f"{one['mean_half_width']:.1f} |"
        )
    lines += ["", columns, "|---|---|---|---|---|---|---|---|"]
    lines += [_row(one) for one in document["students"]]
    if document["outside"]:
        lines += [
            "",
            "Not learnt from, and given no forecast; what the fit would have said:",
            "",
            columns,
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(one) for one in document["outside"]]
    return "\n".join(lines) + "\n"


def _row(one: dict[str, Any]) -> str:
    agreed = {found["kind"]: 100 * found["agreed"] for found in one["agreements"]}
    if "half_width" in one:
        expected = f"{one['expected_left_out']:.1f} ± {one['half_width']:.1f}"
        if abs(one["expected_left_out"] - one["lost"]) > one["half_width"]:
            expected += " (missed)"
    else:
        expected = f"{one['expected']:.1f}"
    steps = "-" if one["steps"] is None else one["steps"]
    return (
        f"| {one['network']} | {one['state']} | {one['ratio']:g} | {steps} | "
        f"{agreed['synthetic']:.1f} / {agreed['procedural']:.1f} | {one['acc_before']:.1f} | "
        f"{one['lost']:.1f} | {expected} |"
    )
