"""Render what a forecast of lost accuracy is worth, out of ``results/forecast.json`` alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def write_tables(folder: Path = RESULTS) -> None:
    """Write ``forecast.md`` from ``forecast.json``."""
    document = json.loads((folder / "forecast.json").read_text("utf-8"))
    (folder / "forecast.md").write_text(tables(document), "utf-8")


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
