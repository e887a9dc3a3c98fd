"""Compress trained depthwise networks: ``python -m benchmarks.studies.depthwise``.

Each row is one network, ratio and method in a process of its own, whose wall and processor time and
peak memory are its own. ``none`` and ``guided`` are ``edgeclean compress`` with that ``--purify``;
with ``none`` one search alone is run, so that the time is that of the compression. ``own-size`` is
``none`` where the network's layers may not see its images smaller. ``pruned`` is torch-pruning at
no more MACs, as it is and tuned by edgeclean's own recovery on the same synthetic images (by its
outputs alone: pruned maps have no counterpart in the teacher's); ``pruned-8`` rounds channels to 8.
Test images and trigger, which no stage sees, measure before and after. A ratio that is refused is a
row with the refusal.

A row joins ``results/depthwise.json`` as it is done, and is not run again without ``--again``.
Stages are kept under ``.bench/kept``; a row says how many of its own it took up from there, and
its times are then no whole job's. ``--latency`` measures the files of the rows that are there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.rendering.depthwise_table import (
    DEPTHWISE,
    METHODS,
    RATIOS,
    Key,
    is_asked,
    key_of,
    table,
)
from benchmarks.studies.compress_zoo import KEPT, THREADS
from benchmarks.studies.depthwise_latency import measure_latencies, onnx_path
from benchmarks.studies.depthwise_networks import TrainedNetwork, rates, trained_networks
from benchmarks.studies.effort import processor_seconds
from benchmarks.suite.cells import Cell, write_whole
from edgeclean.compression.finetune import finetune
from edgeclean.compression.settings import OF_LAYERS
from edgeclean.config import PipelineSettings, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.effort import LEVELS
from edgeclean.errors import RatioError
from edgeclean.images.synthesize import synthesize
from edgeclean.load.architectures import build_architecture
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.state import Network
from edgeclean.pipeline import compress
from edgeclean.processes import keep_freed_memory
from edgeclean.runner import Cache, Runner
from exporters.onnx_exporter import ExportSettings, export_onnx

TARGET = "cpu"
ONE_SEARCH = {"searches": ["patch bank"], "images": 16, "bank_candidates": 16}


def main() -> None:
    """Run the asked rows that are missing and write the table; or run one, as a child of that."""
    options = _parser().parse_args()
    if options.row:
        _write_row(Key(**json.loads(options.row)))
        return
    for key in _asked(options):
        if key not in known_rows() or options.again:
            words = ["--row", json.dumps(key._asdict())]
            subprocess.run(  # noqa: S603 - our own words
                [sys.executable, "-m", "benchmarks.studies.depthwise", *words], check=True
            )
            row = json.loads(_row_path(key).read_text())
            write_results({**known_rows(), key: row}, known_latencies())
            print(*key, "refused" if "refused" in row else "done", flush=True)
    latencies = known_latencies()
    if options.latency:
        latencies |= measure_latencies(list(known_rows()))
    write_results(known_rows(), latencies)


def known_rows() -> dict[Key, Cell]:
    """Read the rows of ``results/depthwise.json``."""
    rows = json.loads(DEPTHWISE.read_text())["rows"] if DEPTHWISE.exists() else []
    return {key_of(row): row for row in rows}


def known_latencies() -> dict[str, Cell]:
    """Read the latencies of ``results/depthwise.json``."""
    return json.loads(DEPTHWISE.read_text())["latencies"] if DEPTHWISE.exists() else {}


def write_results(rows: dict[Key, Cell], latencies: dict[str, Cell]) -> None:
    """Write ``depthwise.json``, and the tables from it."""
    whole = {
        "command": "python -m benchmarks.studies.depthwise",
        "target": TARGET,
        "rows": [rows[key] for key in sorted(rows)],
        "latencies": latencies,
    }
    write_whole(DEPTHWISE, json.dumps(whole, indent=1, sort_keys=True))
    write_whole(DEPTHWISE.with_suffix(".md"), table(rows, latencies).strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", nargs="+", choices=list(trained_networks()))
    parser.add_argument("--ratio", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--effort", nargs="+", choices=LEVELS, default=["quick"])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--again", action="store_true", help="also rows that are there already")
    parser.add_argument("--latency", action="store_true", help="then measure latencies")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    return parser


def _asked(options: argparse.Namespace) -> Iterator[Key]:
    names = options.network or list(trained_networks())
    asked = product(options.seed, options.effort, names, options.method, options.ratio)
    for seed, effort, name, method, ratio in asked:
        if is_asked(name, method):
            yield Key(network=name, method=method, effort=effort, ratio=ratio, seed=seed)


def _write_row(key: Key) -> None:
    torch.set_num_threads(THREADS)
    keep_freed_memory()  # as the command does
    trained, said = trained_networks()[key.network], list[str]()
    cache = Cache(folder=KEPT, notify=said.append)
    start, before = time.perf_counter(), processor_seconds()
    row: Cell
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = _pruned if key.method.startswith("pruned") else _edgeclean
            states, row = run(key, trained, Path(folder), cache)
    except RatioError as refusal:
        states, row = {}, {"refused": str(refusal)}
    row |= {
        **key._asdict(),
        "wall_s": round(time.perf_counter() - start, 1),
        "processor_s": round(processor_seconds() - before, 1),
        "peak_memory_mib": _peak_mib(),
        "stages_taken_up": sum("taken up" in line for line in said),
        "environment": environment(),
    }
    for state, network in states.items():  # afterwards: measuring is no part of the job
        row[state] = {**_size(network), **rates(network, states["original"], trained)}
    write_whole(_row_path(key), json.dumps(row, indent=1, sort_keys=True))


def settings_of(key: Key) -> PipelineSettings:
    """Return the job's settings: the defaults of its effort, its ratio and ``--purify``."""
    purify = "none" if key.method in ("none", "own-size") else "guided"
    forms = {"forms": [*OF_LAYERS]} if key.method == "own-size" else {}
    asked = {
        "seed": key.seed,
        "effort": key.effort,
        "ranks": {"ratio": key.ratio, **forms},
        "purify": {"mode": purify},
        **({"scan": ONE_SEARCH} if purify == "none" else {}),
    }
    return settings_for(load_target(TARGET), asked)


def _edgeclean(
    key: Key, trained: TrainedNetwork, folder: Path, cache: Cache
) -> tuple[dict[str, Network], Cell]:
    """Run the whole job, and keep its ONNX file for the latencies."""
    written = compress(
        trained.write(folder),
        trained.spec,
        folder / "bundle",
        settings_of(key),
        target=load_target(TARGET),
        code_folder=Path(),
        cache=cache,
    )
    outcome = written.compression
    _keep_onnx(onnx_path(key), outcome.model)
    _keep_onnx(onnx_path(key._replace(method="original", ratio=1.0)), outcome.original_model)
    row: Cell = {
        "verdict": outcome.scan.verdict,
        "suspected": list(outcome.scan.targets),
        "stages": written.report["stages"],
        "resolution": written.report["resolution"],
    }
    states: dict[str, Network] = {"original": outcome.original}
    if key.method == "guided":
        states["purified"] = outcome.purified
    return {**states, "compressed": outcome.compressed}, row


def _pruned(
    key: Key, trained: TrainedNetwork, folder: Path, cache: Cache
) -> tuple[dict[str, Network], Cell]:
    """Prune channels by torch-pruning, then tune on the job's own synthetic images."""
    from benchmarks.studies.latency_models import ROUND_TO, channel_pruned

    settings = settings_of(key)
    path = trained.write(folder)
    original = load_checkpoint(path, trained.spec, code_folder=Path())
    # torch-pruning needs the network's own code: a canonical form holds the channels as numbers.
    own = build_architecture(trained.spec.architecture, trained.spec, ()).eval()
    own.load_state_dict(original.module.state_dict())
    try:
        rounded = ROUND_TO if key.method == "pruned-8" else None
        pruned = channel_pruned(replace(original, module=own), key.ratio, rounded)
    except ValueError as refusal:
        raise RatioError(str(refusal)) from refusal
    run, seed = Runner(cache), key.seed
    images = run.once("synthesize", synthesize, original, settings.synthesize, seed=seed)
    by_outputs = settings_for(
        load_target(TARGET), {"effort": key.effort, "finetune": {"feature_weight": 0.0}}
    ).finetune
    tuned = run.once("finetune", finetune, pruned, original, images, by_outputs, seed=seed)
    _keep_onnx(onnx_path(key), export_onnx(tuned, ExportSettings(batch=1)))
    return {"original": original, "untuned": pruned, "compressed": tuned}, {}


def _keep_onnx(path: Path, model: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model)


def _size(network: Network) -> Cell:
    return {
        "macs": count_macs(network.module, network.spec.input_shape),
        "params": count_params(network.module),
    }


def _peak_mib() -> int:
    """Return the largest peak of this process and of those that it waited for."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(who).ru_maxrss for who in both) / 1024)


def _row_path(key: Key) -> Path:
    return onnx_path(key).with_suffix(".json")


if __name__ == "__main__":
    main()
