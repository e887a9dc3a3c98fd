from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import coverage_marks
from benchmarks.coverage_marks import GROUPS, by_group, left_out, main


def measured(statements: int, lines: int, branches: int, taken: int) -> dict[str, Any]:
    counts = dict(zip(coverage_marks.COUNTS, (statements, lines, branches, taken), strict=True))
    missing = [1] * (statements - lines)
    return {"summary": counts, "missing_lines": missing, "missing_branches": [[1, 2]]}


def run(files: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    source = folder / "measured.json"
    source.write_text(json.dumps({"files": files}), encoding="utf-8")
    words = ["coverage_marks", str(source), "--output", str(folder / "out.json")]
    monkeypatch.setattr("sys.argv", words)
    return main()


def test_a_file_counts_in_the_first_group_that_names_it() -> None:
    groups = by_group(
        {
            "edgeclean/load/onnx/guard.py": measured(10, 10, 4, 4),
            "edgeclean/bundle/verify.py": measured(3, 3, 0, 0),
            "edgeclean/networks/cost.py": measured(100, 96, 2, 2),
            "exporters/parity.py": measured(100, 100, 18, 17),
        }
    )
    sums = [(one["lines_percent"], one["branches_percent"]) for one in groups.values()]
    assert sums == [(100.0, 100.0), (100.0, 100.0), (98.0, 95.0)]


@pytest.mark.parametrize(
    ("name", "lines", "taken", "code"),
    [
        ("edgeclean/load/checkpoint.py", 20_000, 20_000, 0),
        ("edgeclean/load/checkpoint.py", 19_999, 20_000, 1),
        ("edgeclean/files/atomic.py", 20_000, 19_999, 1),
        ("exporters/parity.py", 19_000, 19_000, 0),
        ("exporters/parity.py", 20_000, 18_999, 1),
    ],
)
def test_one_line_or_branch_below_a_mark_fails(
    name: str,
    lines: int,
    taken: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run({name: measured(20_000, lines, 20_000, taken)}, tmp_path, monkeypatch) == code
    assert (f"  {name}: lines" in capsys.readouterr().out) == bool(code)
    record = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert set(record["groups"]) == {group.name for group in GROUPS}


def test_what_is_left_out_says_why() -> None:
    for lines in left_out().values():
        for line in lines:
            kind, _, reason = line.partition("# no ")[2].partition(" - ")
            assert kind in ("cover", "branch")
            assert len(reason) > 10, line
