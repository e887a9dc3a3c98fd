"""The command for a GPU: what comes first, what is lacking, and all of it on a processor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_few import FEW
from bench_images import shade_images, write_pack
from test_bench_suite import TINY

from benchmarks.studies import gpu, gpu_latency
from benchmarks.studies.gpu_latency import LatencyPlan
from benchmarks.suite.columns import finished_cells
from benchmarks.suite.commands import OUT_OF_TIME
from benchmarks.suite.suites import QUICK_ATTACKS, SUITES, Suite

LATENCY = LatencyPlan(networks=("cifar-resnet18",), batches=(1, 2), runs=1, seconds=0.1)


def tiny(part: Suite) -> Suite:
    """The same attacks, rows and names, on a network and images of a moment."""
    return replace(
        part,
        spec=replace(TINY.spec, architecture="resnet20"),
        training=TINY.training,
        train_images=64,
        test_images=32,
        clean_images=16,
        seeds=(0,),
        attacks={name: QUICK_ATTACKS[name] for name in part.attacks},
        settings=FEW,
        timed_runs=min(part.timed_runs, 1),
    )


SMALL = {name: tuple(map(tiny, SUITES[name])) for name in ("table2", "table4")}


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The words of a call on a processor, with packs of all data sets but CIFAR-100."""
    for name in ("cifar10", "gtsrb-roi"):
        for part, count, seed in (("train", 64, 0), ("test", 32, 1)):
            write_pack(tmp_path / f"{name}-{part}.npz", shade_images(count, seed=seed))
    folders = {"data": tmp_path, "folder": tmp_path / "kept", "results": tmp_path / "results"}
    named = [word for name, path in folders.items() for word in (f"--{name}", str(path))]
    return [*named, "--device", "cpu"]


def test_the_most_telling_cells_come_first() -> None:
    (table2,) = SUITES["table2"]
    steps = list(gpu.steps_of(table2, gpu.ROUNDS["table2"]))
    ours = ("none", "edgeclean-2x", "edgeclean-3x", "edgeclean-4x")
    assert [(suite.defences, attack, suite.seeds) for suite, attack in steps[:3]] == [
        (ours, attack, (0,)) for attack in ("badnets", "wanet", "input-aware")
    ]
    firsts = [(suite.seeds[0], suite.defences[0]) for suite, _ in steps[::3]]
    systems = ("none", "clp+pruning-2x", "anp+pruning-2x", "deck-2x")
    assert firsts == [(seed, system) for seed in (0, 1, 2) for system in systems]
    for name, rounds in (("table2", gpu.ROUNDS["table2"]), ("table4", None)):
        for part in SUITES[name]:
            cells = [
                (suite.seeds[0], attack, row)
                for suite, attack in gpu.steps_of(part, rounds)
                for row in suite.defences
            ]
            assert len(cells) == len(set(cells))
            assert len(cells) == len(part.seeds) * len(part.attacks) * len(part.defences)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without CUDA lacks")
def test_what_is_lacking_is_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--results", str(tmp_path)], SMALL, LATENCY) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "table2 is left out",
        "table4 is left out",
        "latencies in torch are left out",
        "latencies in onnxruntime are left out",
    ]
    assert "no CUDA device" in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_processor_writes_into_no_results_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"], SMALL, LATENCY)
    assert "give --results" in capsys.readouterr().err


@pytest.mark.slow
def test_everything_runs_small_stops_in_time_and_goes_on(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every kind of cell, and every kind of latency."""
    results = tmp_path / "results"
    assert gpu.main([*words, "--minutes", "1e-9"], SMALL, LATENCY) == OUT_OF_TIME
    assert (results / "table2.md").exists()
    code = gpu.main(words, SMALL, LATENCY)
    said = capsys.readouterr().out
    (lacking,) = [line for line in said.splitlines() if "left out" in line]
    assert lacking.startswith("table4-cifar100 is left out: no file at ")
    assert "CIFAR-100 binary version" in lacking
    assert code == 1
    (table2,), signs = SMALL["table2"], SMALL["table4"][0]
    for part in (table2, signs):
        cells = finished_cells(part, results)
        assert len(cells) == len(part.seeds) * len(part.attacks) * len(part.defences)
    latencies = json.loads((results / "gpu-latency.json").read_text())["cells"]
    keys = ("network", "runtime", "precision", "batch")
    assert {tuple(cell[key] for key in keys) for cell in latencies} == set(LATENCY.cells())
    for cell in latencies:
        assert not cell["refused"]
        whose = ("ours", gpu_latency.PEER, gpu_latency.ROUNDED)
        assert set(cell["rows"]) == {
            "original",
            *(f"{who} {ratio}x" for who in whose for ratio in (2, 4)),
        }
        assert cell["rows"]["ours 2x"]["macs_ratio"] == pytest.approx(2, rel=0.1)
    assert (results / "gpu-latency.md").read_text().count("| cifar-resnet18 32x32 |") == 12
    gpu.main(words, SMALL, LATENCY)
    assert capsys.readouterr().out.count("\n") == 1  # the data set that is lacking, nothing else


@pytest.mark.gpu
@pytest.mark.parametrize("precision", gpu_latency.PRECISIONS)
def test_a_graph_is_timed_in_the_precision_that_is_asked(precision: str, tmp_path: Path) -> None:
    key = ("cifar-resnet18", "torch", precision, 1)
    before = torch.backends.cudnn.allow_tf32
    cell = gpu_latency.measure(key, LATENCY, "cuda", tmp_path)
    assert cell is not None
    assert all(row["p50_ms"] > 0 for row in cell["rows"].values())
    assert torch.backends.cudnn.allow_tf32 == before
    assert gpu_latency.measure(key, LATENCY, "cuda", tmp_path) is None  # it is kept
