"""The study of runtimes: its cells become a table, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies import runtimes
from benchmarks.studies.runtimes import Cell


def cell(runtime: str, **changes: object) -> Cell:
    times = {"p50_ms": 2.0, "p50_interval": [1.9, 2.1], "p90_ms": 3.0, "min_ms": 1.5, "runs": 20}
    return {
        "network": "resnet18",
        "ratio": 2.0,
        "threads": 1,
        "runtime": runtime,
        "version": "1.2",
        "bytes": {"original": 2_000_000, "compressed": 1_000_000},
        "parity": 1e-6,
        "original": {**times, "p50_ms": 4.0},
        "compressed": times,
        "speedup": 2.0,
        "speedup_interval": [1.9, 2.1],
        "steady": True,
        **changes,
    }


def test_a_median_lies_within_its_interval() -> None:
    latencies = np.random.default_rng(0).lognormal(size=200)
    low, high = runtimes.median_interval(latencies)
    assert low < float(np.median(latencies)) < high
    assert runtimes.median_interval(np.full(30, 2.0)) == (2.0, 2.0)


def test_a_line_says_where_compression_made_it_slower_or_why_there_is_none() -> None:
    line = runtimes.line_of(cell("ncnn"))
    assert "| ncnn 1.2 | 2.00 → 1.00 MB | 1e-06 | 4 [1.9, 2.1] | 2 [1.9, 2.1] | 2.00" in line
    assert "slower" not in line
    slow = runtimes.line_of(cell("ncnn", speedup=0.8, speedup_interval=[0.7, 0.9], steady=False))
    assert "0.80 [0.70, 0.90] **slower** ~" in slow
    assert "slower" not in runtimes.line_of(cell("ncnn", speedup_interval=[0.9, 1.1]))
    by_table = runtimes.line_of(cell("ncnn", ratio=None))
    assert "| own table, 1.2x asked | 1 | ncnn 1.2 |" in by_table
    assert "it crashed" in runtimes.line_of(cell("mnn", problem="it crashed"))


def test_the_table_is_of_the_cells_alone_in_their_order(tmp_path: Path) -> None:
    folder, results = tmp_path / "cells", tmp_path / "results"
    folder.mkdir()
    for name in ("ncnn", "onnxruntime"):
        (folder / f"cell-{name}.json").write_text(json.dumps(cell(name)))
    runtimes.write_table(folder, results)
    whole = json.loads((results / "runtimes.json").read_text())
    assert [one["runtime"] for one in whole["cells"]] == ["onnxruntime", "ncnn"]
    assert whole["command"] == "python -m benchmarks.runtimes"
    lines = (results / "runtimes.md").read_text().splitlines()
    assert lines[-1] == f"2 of {whole['asked']} cells have been run."
    empty = tmp_path / "none"
    runtimes.write_table(tmp_path / "nothing", empty)
    assert not empty.exists()


@pytest.mark.slow
def test_a_cell_is_measured_for_real(tmp_path: Path) -> None:
    settings = runtimes.LatencySettings(runs=2, warmup_runs=1, time_budget_s=5.0)
    found = runtimes.measure("mobilenet-v2", 2.0, runtimes.ONNX_RUNTIME, settings, tmp_path)
    assert found.get("problem") is None
    assert found["parity"] <= 1e-4
    assert found["macs_ratio"] == pytest.approx(2, rel=0.1)
    assert found["compressed"]["runs"] == 2
