from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.studies import latency, latency_models
from benchmarks.studies.latency import Cell
from edgeclean.networks.cost import count_macs
from edgeclean.networks.layers import trace_layers

FACTS = {
    name: {"macs": macs, "params": 10, "onnx_bytes": 40}
    for name, macs in (("original", 400), ("ours", 200), ("peer", 190))
}


def test_rows_are_ratios_of_medians_within_their_intervals() -> None:
    noise = np.random.default_rng(1).uniform(1, 1.1, size=(40, 1))
    latencies = noise * np.array([[6.0, 2.0, 3.0]])
    rows = latency._rows(latencies, list(FACTS), FACTS)
    assert rows["ours"]["speedup"] == pytest.approx(3.0)
    assert rows["peer"]["speedup"] == pytest.approx(2.0)
    assert rows["peer"]["ours_is_faster_by"] == pytest.approx(1.5)
    assert rows["original"]["speedup_interval"] == [1.0, 1.0]
    assert rows["ours"]["macs_ratio"] == 2.0
    for row in rows.values():
        low, high = row["speedup_interval"]
        assert low <= row["speedup"] <= high


def test_a_line_names_the_goal_and_every_peer() -> None:
    latencies = np.full((20, 5), 4.0) / np.array([[1.0, 2.0, 1.5, 1.6, 1.2]])
    names = ["original", "ours", *latency.PEERS]
    rows = latency._rows(latencies, names, dict.fromkeys(names, FACTS["ours"]))
    cell = {
        "network": "n",
        "side": 8,
        "ratio": 2.0,
        "threads": 1,
        "goal_speedup": 1.7,
        "refused": None,
    }
    line = latency.line_of({**cell, "rows": rows})
    assert "**2.00 [2.00, 2.00] at 1.00x (>= 1.7)**" in line
    assert line.count("|") == 6 + len(latency.PEERS)


def test_cells_of_another_day_stay_unless_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(latency, "FOLDER", tmp_path / "folder")

    def put(path: Path, threads: int, factor: float) -> Cell:
        latencies = np.full((20, 5), 4.0) / np.array([[1.0, factor, 1.5, 1.6, 1.2]])
        names = ["original", "ours", *latency.PEERS]
        cell: Cell = {"network": "resnet18", "side": 8, "ratio": 2.0, "threads": threads}
        cell |= {"goal_speedup": None, "refused": None}
        cell["rows"] = latency._rows(latencies, names, dict.fromkeys(names, FACTS["ours"]))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(cell))
        return cell

    old = [put(tmp_path / "folder" / "old.json", threads, 2.0) for threads in (1, 2)]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "latency-cpu.json").write_text(json.dumps({"cells": old}))
    put(tmp_path / "folder" / "cell-resnet18-2-2.json", 2, 3.0)
    latency.write_table()
    cells = json.loads((tmp_path / "results" / "latency-cpu.json").read_text())["cells"]
    assert [(cell["threads"], cell["rows"]["ours"]["speedup"]) for cell in cells] == [
        (1, 2.0),
        (2, 3.0),
    ]


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_factorised_peer_costs_what_is_counted(kernel: int) -> None:
    conv = nn.Conv2d(12, 20, kernel, stride=2, padding=kernel // 2, bias=False)
    (traced,) = trace_layers(conv, (12, 8, 8))
    layer = latency_models._tucker_layer(conv, 0.5, 0)
    assert layer(torch.zeros(1, 12, 8, 8)).shape == (1, 20, 4, 4)
    weights = Counter(tuple(one.shape) for one in layer.parameters())
    assert weights[(10, 6, kernel, kernel)] == weights[(20, 10)] == weights[(12, 6)] == 1
    expected = 12 * 6 * 64 + (10 * 6 * kernel**2 + 20 * 10) * 16
    assert latency_models._tucker_macs(traced, 0.5) == expected


def test_peers_are_within_the_macs_that_are_asked() -> None:
    network = latency_models.original("cifar-resnet18")
    before = network.history[0].macs
    factorised = latency_models.factorised(network, 2.0)
    pruned = latency_models.channel_pruned(network, 2.0)
    assert count_macs(pruned.module, (3, 32, 32)) == pruned.history[0].macs
    for peer in (factorised, pruned):
        assert 2.0 <= before / peer.history[0].macs <= 2.05


def test_turns_begin_with_another_network_each_round() -> None:
    called: list[int] = []

    def timed(name: int) -> float:
        called.append(name)
        return float(name)

    latencies = latency.in_turns([partial(timed, name) for name in range(3)], runs=2, warm_up=1)
    assert called == [0, 1, 2, 1, 2, 0, 2, 0, 1]
    assert latencies.tolist() == [[0, 1, 2], [0, 1, 2]]
