"""Run the main job on every published network: ``python -m benchmarks.studies.compress_zoo``.

Each network goes through ``edgeclean.pipeline.compress`` with its defaults, in a process of its
own, so that wall time and peak memory are its own. The test images and the trigger, which the run
does not see, measure the network as it came, purified at full size, and compressed. A cell joins
``results/compress-zoo.json`` as it is done, with the version of the code; an interrupted run, or a
later one, goes on with the missing cells. The stages are kept for `benchmarks.studies.purify`; a
cell says how many of its own it took up from an earlier run: its seconds are then no whole run's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.environment import environment, peak_mib, wall_seconds
from benchmarks.metrics import accuracy, attack_success_rate, robust_accuracy
from benchmarks.rendering.forecast_table import write_tables
from benchmarks.studies.published import (
    PROBE_NETWORK,
    RESULTS,
    PublishedNetwork,
    published_networks,
)
from edgeclean.compression.finetune import photographs_seen
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import JsonValue, Network
from edgeclean.outcome import Compression
from edgeclean.pipeline import WrittenCompression, compress
from edgeclean.runner import Cache

Cell = dict[str, JsonValue]
BENCH = Path(__file__).parents[2] / ".bench"
CELLS, KEPT = BENCH / "compress-zoo", BENCH / "kept"
THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))
TEST_IMAGES = 2000


def main() -> None:
    """Run all missing cells and write the table; or run one cell, as a child of that."""
    options = _parser().parse_args()
    if options.cell:
        _write_cell(options.cell, options.seed[0], options.ratio[0], options.target)
        return
    cells = known_cells()
    for seed in options.seed:
        for ratio in options.ratio:
            for name in options.network or published_networks():
                if options.again or (name, seed, ratio) not in cells:
                    _run_child(name, seed, ratio, options.target)
                    written = json.loads(_cell_path(name, seed, ratio).read_text())
                    cells = known_cells() | {(name, seed, ratio): written}
                    _write_table(options.target, cells)
                    print(name, seed, ratio, "done", flush=True)
    _write_table(options.target, cells)


def known_cells() -> dict[tuple[str, int, float], Cell]:
    """Read the cells of ``results/compress-zoo.json``, by network, seed and ratio."""
    path = RESULTS / "compress-zoo.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    return {(cell["network"], cell["seed"], cell["ratio_asked"]): cell for cell in cells}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--ratio", type=float, nargs="+", default=[2.0])
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--again", action="store_true", help="also cells that are there already")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser


def _run_child(name: str, seed: int, ratio: float, target: str) -> None:
    words = ["--cell", name, "--seed", str(seed), "--ratio", str(ratio), "--target", target]
    subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-m", "benchmarks.studies.compress_zoo", *words], check=True
    )


def _write_cell(name: str, seed: int, ratio: float, target_name: str) -> None:
    torch.set_num_threads(THREADS)
    published = published_networks()[name]
    target = load_target(target_name)
    settings = settings_for(target, {"seed": seed, "ranks": {"ratio": ratio}})
    said: list[str] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        written = compress(
            published.path,
            published.spec,
            Path(folder) / "bundle",
            settings,
            target=target,
            code_folder=published.code_folder,
            cache=Cache(folder=KEPT, notify=said.append),
        )
    seconds = time.perf_counter() - start
    cell = _cell(name, published, written)
    cell |= {"seed": seed, "ratio_asked": ratio, "wall_s": round(seconds, 1)}
    cell["stages_taken_up"] = sum("taken up" in line for line in said)
    cell |= {"peak_memory_mib": peak_mib(), "environment": environment()}
    path = _cell_path(name, seed, ratio)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cell, indent=1, sort_keys=True) + "\n")


def _cell(name: str, published: PublishedNetwork, written: WrittenCompression) -> Cell:
    outcome = written.compression
    images = read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES)
    states = {
        "before": outcome.original,
        "purified": outcome.purified,
        "compressed": outcome.compressed,
    }
    shape = published.spec.input_shape
    return {
        "network": name,
        "true_target": published.target,
        "verdict": outcome.scan.verdict,
        "suspected": list(outcome.scan.targets),
        "scan": outcome.scan.summary(),
        "purify": dict(outcome.purified.history[-1].notes),
        **{state: rates_of(network, published, images) for state, network in states.items()},
        "macs_share": count_macs(outcome.compressed.module, shape)
        / count_macs(outcome.original.module, shape),
        "params_share": count_params(outcome.compressed.module)
        / count_params(outcome.original.module),
        "photographs": photographs_seen(outcome.compressed),
        "parity_max_abs": outcome.parity.max_abs_difference,
        "stages": written.report["stages"],
        "forecast": _forecast(outcome),
    }


def _forecast(outcome: Compression) -> Cell:
    """Return what the run said beforehand of the accuracy that was lost."""
    told = {"purified": outcome.forecasts.purified, "compressed": outcome.forecasts.compressed}
    return {
        state: {"expected": one.expected_points, "low": one.low_points, "high": one.high_points}
        for state, one in told.items()
    }


def rates_of(network: Network, published: PublishedNetwork, images: LabelledImages) -> Cell:
    """Measure ACC, ASR and RA in percent; the clean control meets the probe's trigger."""
    function = pixel_network(network).eval()
    probe = published if published.stamp else published_networks()[PROBE_NETWORK]
    assert probe.stamp is not None
    assert probe.target is not None
    return {
        "acc": round(accuracy(function, images).percent, 2),
        "asr": round(attack_success_rate(function, images, probe.stamp, probe.target).percent, 2),
        "ra": round(robust_accuracy(function, images, probe.stamp, probe.target).percent, 2),
    }


def _cell_path(name: str, seed: int, ratio: float) -> Path:
    return CELLS / f"{name}-seed{seed}-ratio{ratio:g}.json"


def _write_table(target: str, known: dict[tuple[str, int, float], Cell]) -> None:
    cells = [known[key] for key in sorted(known)]
    command = "python -m benchmarks.studies.compress_zoo --seed S... --ratio R..."
    whole = {"command": command, "target": target, "test_images": TEST_IMAGES, "cells": cells}
    (RESULTS / "compress-zoo.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    lines = [
        "| network | seed | scan: target (true) | ratio | MACs left | ACC/ASR before "
        "| ACC/ASR/RA purified | ACC/ASR/RA compressed | photographs | wall s | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_row(cell) for cell in cells),
    ]
    (RESULTS / "compress-zoo.md").write_text("\n".join(lines) + "\n")
    write_tables()


def _share(cell: Cell) -> str:
    """Return the share of recovery's batches that was crops; before there were any, none."""
    seen = cell.get("photographs")
    return "none" if seen is None else f"{seen['share']:.0%}"


def _row(cell: Cell) -> str:
    def rates(state: str, *keys: str) -> str:
        return " / ".join(f"{cell[state][key]:.2f}" for key in keys)

    suspected = ", ".join(map(str, cell["suspected"])) or "not found"
    return (
        f"| {cell['network']} | {cell['seed']} | {suspected} ({cell['true_target']}) "
        f"| {cell['ratio_asked']:g} | {cell['macs_share']:.3f} "
        f"| {rates('before', 'acc', 'asr')} | {rates('purified', 'acc', 'asr', 'ra')} "
        f"| {rates('compressed', 'acc', 'asr', 'ra')} | {_share(cell)} "
        f"| {wall_seconds(cell)} | {cell['peak_memory_mib']} |"
    )


if __name__ == "__main__":
    main()
