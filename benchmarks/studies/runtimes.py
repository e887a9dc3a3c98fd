"""Measure original against compressed in every runtime: ``python -m benchmarks.runtimes``.

ResNet-18 and MobileNetV2 for 224x224 images with random weights, and the published ResNet-20; 2x
and 4x fewer MACs; one and two threads; batch 1, FP32. Ranks are planned by energy, without a
latency table: this shows what a ratio of MACs is worth in each runtime, and where it is worth
nothing. A last row of each network and runtime, with one thread, is planned for a speed-up by that
runtime's own latency table, short: by it no layer is made slower, and what is out of reach is
refused. Both networks of a cell take turns in one process. Each cell, and each shape of a table, is
kept in ``.bench/runtimes`` once done, so an interrupted run goes on; a runtime that is not
installed is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.environment import environment
from benchmarks.studies import latency_models as models
from benchmarks.studies.published import ZOO_FOLDER, published_networks
from benchmarks.suite.cells import write_whole
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.errors import EdgecleanError, ParityError
from edgeclean.files.store import Store
from edgeclean.measure.block_latency import BlockLatencySettings
from edgeclean.measure.latency import LatencyReport, LatencySample, LatencySettings, measure_pair
from edgeclean.measure.machine_table import measured_table
from edgeclean.measure.runtime_latency import measure_runtime_pair
from edgeclean.measure.runtimes import CONVERTED, ONNX_RUNTIME
from edgeclean.networks.cost import count_macs
from edgeclean.networks.state import JsonValue, LoadedNetwork, Network
from exporters.confined_runtime import HeldSettings
from exporters.onnx_exporter import export_onnx
from exporters.parity import ParityRecord, ParitySettings, check_parity, compare_with_pytorch
from exporters.protocol import confined_exporter, exporter_named

Cell = dict[str, JsonValue]
RESULTS = Path(__file__).parents[1] / "results"
FOLDER = Path(__file__).parents[2] / ".bench" / "runtimes"
COMMAND = "python -m benchmarks.runtimes"
ZOO = "resnet20-clean"
NETWORKS = ("resnet18", "mobilenet-v2", ZOO)
RATIOS = (2.0, 4.0)
THREADS = (1, 2)
SPEEDUP = 1.2  # asked of the rows that are planned by a table
TABLE = {"rounds": 7, "layer_seconds": 1.0}
RUNTIMES = (ONNX_RUNTIME, *CONVERTED)
RUNS = 100
SECONDS = 120.0  # of one cell
PARITY_IMAGES = 4
RESAMPLES = 1000


def main() -> None:
    """Measure every cell that is not done yet, and write the table."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    settings = LatencySettings(runs=options.runs, time_budget_s=options.seconds)
    for name, ratio, threads, runtime in every_cell():
        how = f"{ratio:g}" if ratio else "table"
        path = options.folder / f"cell-{name}-{how}-{threads}-{runtime}.json"
        asked = zip(
            (name, how, threads, runtime),
            (options.network, options.plan, options.threads, options.runtime),
            strict=True,
        )
        if path.exists() or not all(not some or one in some for one, some in asked):
            continue
        if exporter_named(runtime).version() is None:
            continue
        started = time.perf_counter()
        measured = replace(settings, threads=threads)
        cell = measure(name, ratio, runtime, measured, options.folder / "tables")
        cell["seconds"] = round(time.perf_counter() - started, 1)
        write_whole(path, json.dumps(cell, indent=1, sort_keys=True))
        said = cell.get("problem") or round(cell["speedup"], 2)
        print(f"{path.name} {said} in {cell['seconds']} s", flush=True)
    write_table(options.folder, options.results)


def every_cell() -> list[tuple[str, float | None, int, str]]:
    """Return network, ratio of MACs (None: planned by a table), threads and runtime of every cell.

    The quick ones come first.
    """
    by_ratio: list[tuple[str, float | None, int, str]] = []
    by_ratio += product(NETWORKS, RATIOS, THREADS, RUNTIMES)
    return by_ratio + [(name, None, 1, runtime) for name in NETWORKS for runtime in RUNTIMES]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=NETWORKS)
    plans = [*(f"{ratio:g}" for ratio in RATIOS), "table"]
    parser.add_argument("--plan", action="append", choices=plans, help="a ratio of MACs, or table")
    parser.add_argument("--threads", action="append", type=int, choices=THREADS)
    parser.add_argument("--runtime", action="append", choices=RUNTIMES)
    parser.add_argument("--runs", type=int, default=RUNS, help="of each network of a cell")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one cell at the most")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the cells")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


@cache
def network_named(name: str) -> LoadedNetwork:
    """Return the published network where it is there, else one with random weights."""
    if name == ZOO and ZOO_FOLDER.is_dir():
        return published_networks()[ZOO].load()
    if name == ZOO:
        raise SystemExit(f"{name} needs the published checkpoints in {ZOO_FOLDER}; give --network")
    return models.original(name)


@cache
def compressed(name: str, ratio: float) -> Network:
    """Return the network at a ratio of MACs; nothing is tuned, for only its time matters."""
    network = network_named(name)
    settings = RankSettings(ratio=ratio, rank_multiple=8, sensitivity="energy", factors="weights")
    decomposed = decompose(network, DecomposeSettings())  # type: ignore[arg-type]
    return truncate(decomposed, choose_ranks(decomposed, settings), TruncateSettings())


def planned_by_table(name: str, runtime: str, folder: Path) -> Network:
    """Return the network at a speed-up by the runtime's own latency table, with one thread.

    Raises:
        BudgetError: the table has no ranks that reach it.
    """
    network, kept = network_named(name), Store(folder, notify=print)
    how = BlockLatencySettings(runtime=runtime, **TABLE)
    settings = RankSettings(
        speedup=SPEEDUP, forms=("tucker",), sensitivity="energy", factors="weights"
    )
    table = measured_table(network, how, ranks=settings, kept=kept)
    decomposed = decompose(network, DecomposeSettings())  # type: ignore[arg-type]
    return truncate(decomposed, choose_ranks(decomposed, settings, table=table), TruncateSettings())


@cache
def _file(name: str, ratio: float | None) -> bytes:
    return export_onnx(network_named(name) if ratio is None else compressed(name, ratio))


def measure(
    name: str, ratio: float | None, runtime: str, settings: LatencySettings, tables: Path
) -> Cell:
    """Measure one cell: parity of the compressed network, and both in turns."""
    cell: Cell = {"network": name, "ratio": ratio, "threads": settings.threads, "runtime": runtime}
    cell["environment"] = environment()  # the load before measuring
    cell["version"] = exporter_named(runtime).version()
    try:
        if ratio is None:
            network = planned_by_table(name, runtime, tables)
            model = export_onnx(network)
        else:
            network, model = compressed(name, ratio), _file(name, ratio)
        sizes, parity, report = _measured(network, _file(name, None), model, runtime, settings)
    except (EdgecleanError, ParityError) as error:
        return {**cell, "problem": str(error)}
    shape = network.spec.input_shape
    return {
        **cell,
        "side": shape[-1],
        "macs_ratio": round(
            count_macs(network_named(name).module, shape) / count_macs(network.module, shape), 3
        ),
        "bytes": dict(zip(("original", "compressed"), sizes, strict=True)),
        "parity": parity.max_relative_difference,
        "original": _sample(report.original),
        "compressed": _sample(report.compressed),
        "speedup": report.speedup,
        "speedup_interval": [report.speedup_low, report.speedup_high],
        "steady": report.steady,
    }


def _measured(
    network: Network, original: bytes, model: bytes, runtime: str, settings: LatencySettings
) -> tuple[tuple[int, int], ParityRecord, LatencyReport]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(PARITY_IMAGES, *network.spec.input_shape, generator=generator)
    if runtime == ONNX_RUNTIME:
        parity = check_parity(network, model, pixels)
        return (len(original), len(model)), parity, measure_pair(original, model, settings)
    exporter = confined_exporter(runtime, HeldSettings(threads=settings.threads))
    files = [exporter.converted(one).files for one in (original, model)]
    run = exporter.load(files[1]).run
    names = (f"the network in {exporter.title}", f"{exporter.title}, CPU")
    parity = compare_with_pytorch(network, pixels, run, ParitySettings(), names=names)
    sizes = tuple(sum(map(len, one.values())) for one in files)
    return (sizes[0], sizes[1]), parity, measure_runtime_pair(exporter, *files, settings)


def _sample(sample: LatencySample) -> Cell:
    low, high = median_interval(np.array(sample.latencies_ms))
    return {
        "p50_ms": sample.p50_ms,
        "p50_interval": [low, high],
        "p90_ms": sample.p90_ms,
        "min_ms": sample.min_ms,
        "runs": sample.runs,
    }


def median_interval(latencies_ms: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a median of runs [n]."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(latencies_ms), size=(RESAMPLES, len(latencies_ms)))
    low, high = np.percentile(np.median(latencies_ms[drawn], axis=1), [2.5, 97.5])
    return float(low), float(high)


def write_table(folder: Path = FOLDER, results: Path = RESULTS) -> None:
    """Write ``results/runtimes.json`` and ``.md`` from the cells alone."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("cell-*.json"))]
    if not cells:
        return
    order = sorted(every_cell(), key=lambda one: NETWORKS.index(one[0]))
    keys = ("network", "ratio", "threads", "runtime")
    cells.sort(key=lambda cell: order.index(tuple(cell[key] for key in keys)))
    whole = {"command": COMMAND, "asked": len(order), "cells": cells}
    write_whole(results / "runtimes.json", json.dumps(whole, indent=1, sort_keys=True))
    head = ("network", "MACs", "threads", "runtime", "files", "parity", "original ms")
    head = (*head, "compressed ms", "speed-up")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *map(line_of, cells)]
    if len(cells) < len(order):
        lines += ["", f"{len(cells)} of {len(order)} cells have been run."]
    if any(cell.get("steady") is False for cell in cells):
        lines += ["", "~: the machine was not steady; read the interval."]
    write_whole(results / "runtimes.md", "\n".join(lines))


def line_of(cell: Cell) -> str:
    """Return one line of the table: medians and the speed-up, each with its 95 % interval."""
    ratio = cell["ratio"]
    planned = f"own table, {SPEEDUP:g}x asked" if ratio is None else f"{ratio:g}x"
    about = f"| {cell['network']} | {planned} | {cell['threads']} "
    about += f"| {cell['runtime']} {cell['version']} "
    if "problem" in cell:
        return f"{about}| | | | | {cell['problem']} |"
    sizes = " → ".join(f"{cell['bytes'][one] / 1e6:.2f}" for one in ("original", "compressed"))
    times = " | ".join(
        f"{cell[one]['p50_ms']:.3g} [{cell[one]['p50_interval'][0]:.3g}, "
        f"{cell[one]['p50_interval'][1]:.3g}]"
        for one in ("original", "compressed")
    )
    low, high = cell["speedup_interval"]
    slower = " **slower**" if high < 1 else ""
    mark = "" if cell["steady"] else " ~"
    return (
        f"{about}| {sizes} MB | {cell['parity']:.0e} | {times} "
        f"| {cell['speedup']:.2f} [{low:.2f}, {high:.2f}]{slower}{mark} |"
    )


if __name__ == "__main__":
    main()
