"""Measure latency on this CPU, networks in turns: ``python -m benchmarks.studies.latency``.

ONNX Runtime, batch 1, 1 and 2 threads, random weights, 2x and 4x fewer MACs: ours, planned by a
latency table of this machine, torch-pruning (as it is, and with channels rounded to 8), and
tensorly-torch's factorised convolutions. All networks of a cell take turns in one process, and the
time of other programs is left out: one thread is timed by its own processor time, two by the wall
clock in runs that were not interrupted. Every step is kept in ``.bench/latency`` as it is done, so
an interrupted run goes on; ``--step`` and ``--threads`` do one kind of step alone, for a machine
whose cores must be reserved.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.environment import environment
from benchmarks.studies import latency_models as models
from benchmarks.suite.cells import write_whole
from edgeclean.compression.latency_table import read_latency_table
from edgeclean.errors import RatioError
from edgeclean.measure.block_backends import milliseconds
from edgeclean.measure.block_latency import BlockLatencySettings
from edgeclean.measure.block_turns import Run
from edgeclean.measure.latency import speedup_interval, summarise
from edgeclean.measure.machine_table import measured_table
from edgeclean.networks.state import JsonValue, Network
from exporters.session import OnnxSession

Cell = dict[str, JsonValue]
RESULTS = Path(__file__).parents[1] / "results"
FOLDER = Path(__file__).parents[2] / ".bench" / "latency"
RATIOS = (2.0, 4.0)
THREADS = (1, 2)
PEERS = ("torch-pruning", "torch-pruning, rounded to 8", "tensorly-torch")
GOALS = {("resnet18", 2.0): 1.7, ("resnet18", 4.0): 2.8}
RUNS = 60
WARM_UP = 5
SECONDS = 150.0  # of one cell; but at least FEWEST runs of each
FEWEST = 15


def main() -> None:
    """Run every step that is not done yet, and write the table."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    for name in options.network or models.NETWORKS:
        if options.step in ("peers", "all"):
            build_peers(name)
        for threads in options.threads or THREADS:
            if options.step in ("tables", "all"):
                build_table(name, threads)
            if options.step in ("ours", "all"):
                build_ours(name, threads)
            for ratio in RATIOS if options.step in ("measure", "all") else ():
                measure(name, ratio, threads)
    write_table()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=list(models.NETWORKS))
    parser.add_argument("--threads", action="append", type=int, choices=THREADS)
    parser.add_argument(
        "--step", choices=("peers", "tables", "ours", "measure", "write", "all"), default="all"
    )
    return parser


def build_peers(name: str) -> None:
    """Build the original and the peers' networks at both ratios, as ONNX."""
    network = models.original(name)
    _keep(_path(name, "original"), network)
    for ratio in RATIOS:
        for peer in PEERS:
            path = _path(name, peer, ratio)
            if path.exists():
                continue
            if peer == "tensorly-torch":
                _keep(path, models.factorised(network, ratio))
            else:
                rounded = models.ROUND_TO if "rounded" in peer else None
                _keep(path, models.channel_pruned(network, ratio, rounded))


def build_table(name: str, threads: int) -> None:
    """Measure the latency table of the network."""
    path = FOLDER / f"{name}-{threads}-threads.json"
    if path.exists():
        return
    started = time.perf_counter()
    table = measured_table(models.original(name), BlockLatencySettings(threads=threads))
    write_whole(path, table.canonical().decode().strip())
    seconds = round(time.perf_counter() - started, 1)
    _log(f"{path.name}: {len(table.blocks)} layers in {seconds} s")


def build_ours(name: str, threads: int) -> None:
    """Build our networks at both ratios by the table of these threads, or record the refusal."""
    table = FOLDER / f"{name}-{threads}-threads.json"
    for ratio in RATIOS:
        path = _path(name, f"ours-{threads}", ratio)
        if path.with_suffix(".json").exists() or not table.exists():
            continue
        try:
            _keep(path, models.ours(models.original(name), ratio, read_latency_table(table)))
        except RatioError as refusal:
            write_whole(path.with_suffix(".json"), json.dumps({"refused": str(refusal)}))


def measure(name: str, ratio: float, threads: int) -> None:
    """Measure one cell: all networks in turns."""
    path = FOLDER / f"cell-{name}-{ratio:g}-{threads}.json"
    files = {"original": _path(name, "original"), "ours": _path(name, f"ours-{threads}", ratio)}
    files |= {peer: _path(name, peer, ratio) for peer in PEERS}
    if path.exists() or not all(file.with_suffix(".json").exists() for file in files.values()):
        return
    facts = {key: json.loads(file.with_suffix(".json").read_text()) for key, file in files.items()}
    refused = facts["ours"].get("refused")
    if refused:
        del files["ours"]
    about = environment()  # the load before measuring
    latencies = latencies_in_turns({key: file.read_bytes() for key, file in files.items()}, threads)
    cell = {
        "network": name,
        "side": models.NETWORKS[name],
        "ratio": ratio,
        "threads": threads,
        "goal_speedup": GOALS.get((name, ratio)),
        "refused": refused,
        "rows": _rows(latencies, list(files), facts),
        "environment": about,
    }
    write_whole(path, json.dumps(cell, indent=1))
    speedups = {key: round(row["speedup"], 2) for key, row in cell["rows"].items()}
    _log(f"{path.name}: {speedups}")


def latencies_in_turns(files: Mapping[str, bytes], threads: int) -> NDArray[np.float64]:
    """Measure milliseconds [runs, networks] of ONNX files; each round starts with another one."""
    sessions = [OnnxSession(model, threads=threads) for model in files.values()]
    gc.collect()
    shape = (1, *sessions[0].input_shape)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return in_turns(
        [partial(milliseconds, partial(one.run, images), threads=threads) for one in sessions]
    )


def in_turns(
    timed: Sequence[Run], *, runs: int = RUNS, warm_up: int = WARM_UP, seconds: float = SECONDS
) -> NDArray[np.float64]:
    """Return milliseconds [runs, networks] of what times itself; each round starts with another."""
    deadline = time.perf_counter() + seconds
    latencies = np.empty((warm_up + runs, len(timed)))
    for row in range(len(latencies)):
        if row >= warm_up + FEWEST and time.perf_counter() > deadline:
            latencies = latencies[:row]
            break
        for place in range(len(timed)):
            column = (place + row) % len(timed)
            latencies[row, column] = timed[column]()
    return latencies[warm_up:]


def _rows(
    latencies: NDArray[np.float64], names: list[str], facts: Mapping[str, Cell]
) -> dict[str, Cell]:
    """Compare each network with the original, and ours with each peer."""
    generator = np.random.default_rng(0)
    ours = names.index("ours") if "ours" in names else 0  # refused: the original stays
    rows = speedups(latencies, names)
    for column, (name, row) in enumerate(rows.items()):
        behind = speedup_interval(latencies[:, [column, ours]], generator)
        median = float(np.median(latencies[:, column]))
        row |= {
            "ours_is_faster_by": round(median / float(np.median(latencies[:, ours])), 4),
            "ours_is_faster_by_interval": [round(end, 4) for end in behind],
            "macs_ratio": round(facts["original"]["macs"] / facts[name]["macs"], 4),
            "params": facts[name]["params"],
            "onnx_bytes": facts[name]["onnx_bytes"],
        }
    return rows


def speedups(latencies: NDArray[np.float64], names: list[str]) -> dict[str, Cell]:
    """Compare each network of `latencies_in_turns` with the first, with 95 % intervals."""
    generator = np.random.default_rng(0)
    rows: dict[str, Cell] = {}
    for column, name in enumerate(names):
        sample = summarise(latencies[:, column])
        medians = {"p50_ms": sample.p50_ms, "p90_ms": sample.p90_ms, "min_ms": sample.min_ms}
        low, high = speedup_interval(latencies[:, [0, column]], generator)
        rows[name] = {
            **{key: round(value, 4) for key, value in medians.items()},
            "coefficient_of_variation": round(sample.coefficient_of_variation, 4),
            "runs": sample.runs,
            "speedup": round(float(np.median(latencies[:, 0])) / sample.p50_ms, 4),
            "speedup_interval": [round(low, 4), round(high, 4)],
        }
    return rows


def write_table() -> None:
    """Write ``results/latency-cpu.json`` and ``.md``; cells measured here replace older ones.

    Every row compares within one run, so cells of several days or machines may stand together;
    each names its own.
    """
    order = [(name, *rest) for name in models.NETWORKS for rest in product(RATIOS, THREADS)]
    path = RESULTS / "latency-cpu.json"
    before = json.loads(path.read_text())["cells"] if path.exists() else []
    here = [json.loads(one.read_text()) for one in sorted(FOLDER.glob("cell-*.json"))]
    known = {(cell["network"], cell["ratio"], cell["threads"]): cell for cell in [*before, *here]}
    cells = [known[key] for key in order if key in known]
    if not cells:
        return
    whole = {"command": "python -m benchmarks.studies.latency", "asked": len(order), "cells": cells}
    write_whole(path, json.dumps(whole, indent=1, sort_keys=True))
    head = ["network", "MACs", "threads", "original ms", "ours: speed-up (goal)", *PEERS]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *map(line_of, cells)]
    refusals = {cell["refused"] for cell in cells if cell["refused"]}
    lines += ["", *(f"Refused: {one}." for one in sorted(refusals))] if refusals else []
    if len(cells) < len(order):
        lines += ["", f"{len(cells)} of {len(order)} cells have been run."]
    write_whole(RESULTS / "latency-cpu.md", "\n".join(lines))


def line_of(cell: Cell) -> str:
    """Return one line of the table: medians, and the 95 % interval of each speed-up."""
    rows, goal = cell["rows"], cell["goal_speedup"]
    mine = "refused" if cell["refused"] else _speedup(rows["ours"])
    mine += f" (>= {goal:g})" if goal else ""
    network = f"{cell['network']} {cell['side']}x{cell['side']}"
    peers = " | ".join(_speedup(rows[peer]) for peer in PEERS)
    return (
        f"| {network} | {cell['ratio']:g}x | {cell['threads']} | {rows['original']['p50_ms']:.3g} "
        f"| **{mine}** | {peers} |"
    )


def _speedup(row: Cell) -> str:
    low, high = row["speedup_interval"]
    return f"{row['speedup']:.2f} [{low:.2f}, {high:.2f}] at {row['macs_ratio']:.2f}x"


def _path(name: str, what: str, ratio: float | None = None) -> Path:
    words = [name, what.replace(", ", "-").replace(" ", "-")]
    return FOLDER / "-".join([*words, *([] if ratio is None else [f"{ratio:g}"]), "net.onnx"])


def _keep(path: Path, network: Network) -> None:
    """Write the file, and its cost beside it."""
    if path.exists():
        return
    model, last = models.exported(network), network.history[-1]
    facts = {"macs": last.macs, "params": last.params, "onnx_bytes": len(model)}
    write_whole(path.with_suffix(".json"), json.dumps(facts))
    path.write_bytes(model)
    _log(f"{path.name}: {facts}")


def _log(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
