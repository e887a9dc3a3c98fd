"""The simulated nodes: every cell ends, what is lost is done again, and one seed is one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.rendering.fleet_table import write_fleet_table
from benchmarks.studies import fleet
from benchmarks.studies.published import RESULTS


def test_a_simulated_fleet_ends_whatever_dies_and_alike_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "NODE_HOURS", 0.5)
    monkeypatch.setattr(fleet, "REFUSED", 0.2)
    rows = [fleet.simulate(2, 30, 1, tmp_path / str(number)) for number in range(2)]
    for row in rows:
        assert row["cells"] == 90
        assert row["done"] + row["failed"] == 90
        assert row["failed"] > 0
        assert row["tasks_lost"] > 0
        assert 0 < row["slots_busy"] <= 1
        document = json.loads((tmp_path / "0" / "out" / "fleet.json").read_text("utf-8"))
        assert {one["state"] for one in document["cells"]} == {"done", "failed"}
    same = ("done", "failed", "tasks_lost", "virtual_hours", "slots_busy")
    assert [rows[0][name] for name in same] == [rows[1][name] for name in same]


def test_the_table_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "fleet.json").write_bytes((RESULTS / "fleet.json").read_bytes())
    write_fleet_table(tmp_path)
    assert (tmp_path / "fleet.md").read_text() == (RESULTS / "fleet.md").read_text()
