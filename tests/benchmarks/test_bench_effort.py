"""The levels' table and the demo's closing lines say what was measured, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rendering import demo_levels
from benchmarks.studies import effort
from edgeclean.effort import LEVELS

ROOT = Path(__file__).parents[2]


def cell(network: str, level: str, asr: float) -> dict[str, Any]:
    rates = {"acc": 80.0, "asr": asr, "ra": 70.0}
    return {
        "network": network,
        "level": level,
        "seed": 0,
        "suspected": [3],
        "true_target": 3,
        "before": rates | {"asr": 99.5},
        "purified": rates,
        "compressed": rates,
        "wall_s": 90.0,
        "processor_s": 150.0,
        "environment": {"logical_cores": 2},
    }


def test_the_demo_says_what_its_level_and_the_default_gave() -> None:
    cells = {("demo", level, 0): cell("demo", level, 1.5) for level in ("quick", "standard")}
    lines = demo_levels.closing_lines(cells)
    assert "quick" in lines[0]
    assert [line.split()[0] for line in lines[1:3]] == ["quick", "standard"]
    for line in lines[1:3]:
        assert "80.0 %" in line
        assert "99.5 % -> 1.5 %" in line
        assert "1.5 min on 2 cores" in line
    assert lines[-1].strip() == "(benchmarks/results/effort.json)"


def test_what_was_not_measured_is_said_to_be_missing() -> None:
    lines = demo_levels.closing_lines({})
    assert "%" not in "".join(lines)
    assert sum("not measured yet" in line for line in lines) == 2


def test_the_closing_lines_need_no_library_and_are_of_the_makefiles_level() -> None:
    code = "import sys, benchmarks.rendering.demo_levels as d; d.main(); print(sorted(sys.modules))"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    assert "'torch'" not in said
    assert f"This was --effort {demo_levels.DEMO_LEVEL}." in said
    rule = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    assert re.findall(r"--effort (\w+)", rule) == [demo_levels.DEMO_LEVEL]
    assert re.findall(r"--target (\w+)", rule) == [effort.DEMO_TARGET]


def test_the_table_takes_the_default_from_the_other_results_where_it_has_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = [cell(name, "", asr) | {"ratio_asked": 2.0} for name, asr in (("a", 4.0), ("b", 5.0))]
    (tmp_path / "compress-zoo.json").write_text(json.dumps({"cells": zoo}))
    monkeypatch.setattr(effort, "RESULTS", tmp_path)
    known = {
        ("a", "quick", 0): cell("a", "quick", 9.0),
        ("b", "thorough", 0): cell("b", "thorough", 1.0),
        ("b", "standard", 0): cell("b", "standard", 2.0),
    }
    rows = effort.table([*known.values(), *effort.standard_cells(known)]).splitlines()[2:]
    found = [tuple(part.strip() for part in row.split("|")[1:3]) for row in rows]
    assert found == [("a", "quick"), ("a", "standard"), ("b", "standard"), ("b", "thorough")]
    assert ["4.00" in rows[1], "5.00" in rows[2], "2.00" in rows[2]] == [True, False, True]
    assert rows[1].rstrip().endswith("| - |")  # nobody measured its processor seconds


def test_every_committed_cell_is_of_a_level() -> None:
    for (_, level, _), one in demo_levels.known_cells().items():
        assert level in LEVELS
        assert one["level"] == level
        assert one["wall_s"] > 0
