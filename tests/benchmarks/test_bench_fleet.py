"""The simulated nodes: every cell ends, what is lost is done again, and one seed is one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fleet_folder import fill

from benchmarks.rendering.fleet_table import write_fleet_table
from benchmarks.studies import fleet, fleet_zoo
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


def part(cells: dict[str, float], wall: float, sha256: str = "a") -> dict[str, Any]:
    return {
        "wall_s": wall,
        "counts": {"cells": len(cells), "done": len(cells)},
        "scans": 1,
        "cells": {
            name: {"state": "done", "seconds": seconds, "network_seconds": 10.0, "sha256": sha256}
            for name, seconds in cells.items()
        },
        "environment": {},
    }


def test_separate_runs_are_what_was_measured_times_what_their_tasks_took(tmp_path: Path) -> None:
    cells = {"n/cpu/ratio-2": 10.0, "n/cpu/ratio-3": 30.0}
    alone = {"cell": "n/cpu/ratio-2", "wall_s": 30.0, "sha256": "a", "environment": {}}
    zoo: dict[str, Any] = {"command": "measure", "alone": [alone], "asked": {"jobs": 2}}
    zoo["engines"] = {"local": part(cells, 30.0), "ray": part(cells, 45.0, "b")}
    (tmp_path / "fleet.json").write_text(json.dumps({"zoo": zoo}))
    write_fleet_table(tmp_path)
    table = (tmp_path / "fleet.md").read_text()
    assert "| 2 | 90 | 100% | - | - |" in table  # 20 s of tasks took 30 s alone, so 60 s take 90
    assert "| a fleet, engine local | 2 of 2 | 1 | 30 | 33% | 83% | 5.0 |" in table  # 50 s of tasks
    assert "| a fleet, engine ray | 2 of 2 | 1 | 45 | 50% | 56% | 20.0 |" in table
    assert "1 of 1 separate runs and the fleet, 0 of 2 cells on both engines." in table


@pytest.mark.slow
def test_a_study_of_a_fleet_goes_on_and_has_one_scan_a_network(tmp_path: Path) -> None:
    given = fill(tmp_path / "given")
    asked = fleet_zoo.Asked(
        networks={name: (given / f"{name}.safetensors", given / "net.toml") for name in "ab"},
        targets=("cpu", "orin-nano"),
        ratios=(2.0,),
        options={"config": str(given / "quick.toml")},
        engines=("local",),
    )
    kept: list[Any] = []
    known = fleet_zoo.measure(asked, ["a"], None, lambda one: kept.append(json.dumps(one)))
    assert len(kept) == 2
    run = known["engines"]["local"]
    assert (run["scans"], run["counts"]["done"], len(run["cells"])) == (
        1,
        4,
        4,
    )  # a and b are alike
    (alone,) = known["alone"]
    assert alone["sha256"] == run["cells"][alone["cell"]]["sha256"]
    assert set(alone["sha256"]) == set(fleet_zoo.BOUND)
    again = fleet_zoo.measure(asked, ["a"], json.loads(kept[-1]), pytest.fail)
    assert again == known
