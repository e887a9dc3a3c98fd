"""Compare defences on networks that others backdoored: ``python -m benchmarks.studies.purify``.

One cell is one network, one seed and one method, at every ratio, in a process of its own. Synthetic
images, scan and purification are kept between the ratios and methods of one network and seed
(`edgeclean.runner`), so a cell's seconds are those of the work it did itself. Test images and
trigger only measure. A cell joins ``results/purify.json`` as it is done, with the version of the
code; an interrupted run, or a later one, goes on with the missing cells. A cell that lacks a chosen
ratio is measured again as a whole: its rates are of one machine and one code.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.defences.base import batch_norms
from benchmarks.defences.clp import clp
from benchmarks.environment import environment, peak_mib
from benchmarks.rendering.purify_table import known_cells, lacks, write_results
from benchmarks.studies.compress_zoo import BENCH, KEPT, TEST_IMAGES, THREADS, Cell, rates_of
from benchmarks.studies.published import PublishedNetwork, folded_networks, published_networks
from edgeclean.compression.clamp import scale
from edgeclean.compression.decompose import decompose
from edgeclean.compression.finetune import finetune
from edgeclean.compression.resolution import choose_plan
from edgeclean.compression.truncate import truncate
from edgeclean.config import PipelineSettings, overlay, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.errors import RatioError
from edgeclean.images.synthesize import synthesize
from edgeclean.networks.state import LoadedNetwork, Network, PurifiedNetwork, SyntheticImages
from edgeclean.pipeline import run_stages
from edgeclean.runner import Cache, Runner

Key = tuple[str, str, int]
# One method on one network and seed, for the settings of each ratio: the network at full size,
# compressed, and what the method tells of itself.
Run = Callable[[PipelineSettings], tuple[Network, Network, Cell]]
CELLS = BENCH / "purify"
PLAIN, CLP = "plain Tucker-2", "CLP"
METHODS: dict[str, dict[str, Any]] = {
    PLAIN: {"ranks": {"factors": "weights"}, "finetune": {"steps": 0}},
    CLP: {},
    "the deck's method": {"purify": {"mode": "clean-compact"}},
    "scan-guided (the default)": {},
    "all together": {"scale": {"tau": 0.8}},
}


def main() -> int:
    """Run all missing cells and write the table; or run one cell, as a child of that."""
    options = _parser().parse_args()
    if options.cell:
        device = torch.device(options.device)
        _write_cell(options.cell, options.method[0], options.seed[0], options.ratio, device)
        return 0
    asked = product(
        options.seed, options.method or METHODS, options.network or published_networks()
    )
    known = known_cells()
    missing = [
        (name, method, seed)
        for seed, method, name in asked
        if lacks(known.get((name, method, seed)), options.ratio)
    ]
    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool:  # each waits for a process of its own
        running = [pool.submit(_run_child, *key, options) for key in missing]
        for done in as_completed(running):
            try:
                key = done.result()
            except subprocess.CalledProcessError as error:  # the others' hours are not lost by it
                print(error, file=sys.stderr, flush=True)
                failed += 1
                continue
            cells = known_cells() | {key: json.loads(cell_path(*key).read_text())}
            write_results(list(cells.values()))
            print(*key, "done", flush=True)
    write_results(list(known_cells().values()))
    return min(failed, 1)


def cell_path(name: str, method: str, seed: int) -> Path:
    """Return the path of the cell that a child writes."""
    word = "".join(letter if letter.isalnum() else "-" for letter in method)
    return CELLS / f"{name}-{word}-seed{seed}.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    folded = "its name, or that with ' (folded)' behind: as ONNX, without BatchNorm; repeatable"
    parser.add_argument("--network", action="append", help=folded)
    parser.add_argument("--method", action="append", choices=METHODS, help="may be repeated")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratio", type=float, nargs="+", default=[2.0, 4.0])
    parser.add_argument("--jobs", type=int, default=1, help="cells at once; 2: of one thread each")
    parser.add_argument("--device", default="cpu", help="cuda: the networks and all work on a GPU")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser


def _run_child(name: str, method: str, seed: int, options: argparse.Namespace) -> Key:
    """Run one cell in a process of its own; two at once share the cores."""
    words = ["--cell", name, "--method", method, "--seed", str(seed), "--device", options.device]
    words += ["--ratio", *map(str, options.ratio)]
    threads = {"OMP_NUM_THREADS": str(max(1, THREADS // options.jobs))}
    subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-m", "benchmarks.studies.purify", *words],
        check=True,
        env=os.environ | threads,
    )
    return name, method, seed


def _write_cell(
    name: str, method: str, seed: int, ratios: list[float], device: torch.device
) -> None:
    torch.set_num_threads(THREADS)
    published = (published_networks() | folded_networks())[name]
    original = published.load()
    original.module.to(device)
    images = read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES)
    cell: Cell = {
        "network": name,
        "method": method,
        "seed": seed,
        "true_target": published.target,
        "batchnorm": bool(batch_norms(original.module)),
        "before": rates_of(original, published, images),
    }
    if method == CLP and not cell["batchnorm"]:
        cell["left_out"] = "no BatchNorm: CLP prunes BatchNorm channels"
        ratios = []
    else:
        run = _METHODS.get(method, _ByEdgeclean)(original, seed)
    for ratio in ratios:
        start = time.perf_counter()
        asked = overlay(METHODS[method], {"seed": seed, "ranks": {"ratio": ratio}})
        try:
            full, compressed, facts = run(settings_for(load_target("cpu"), asked))
        except RatioError as error:  # too few of its layers can be factored; what it says is kept
            cell[f"{ratio:g}x_refused"] = str(error)
            continue
        seconds = round(time.perf_counter() - start, 1)
        cell |= facts | {"full": rates_of(full, published, images)}
        cell[f"{ratio:g}x"] = {**_rates(compressed, published, images), "seconds": seconds}
    cell["peak_memory_mib"] = peak_mib()
    cell["environment"] = environment()
    path = cell_path(name, method, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cell, indent=1, sort_keys=True) + "\n")


class _ByEdgeclean:
    """A method that purifies and compresses by edgeclean, and keeps the scan's record."""

    def __init__(self, original: LoadedNetwork, seed: int) -> None:
        self._original, self._seed = original, seed

    def __call__(self, settings: PipelineSettings) -> tuple[Network, Network, Cell]:
        runner = Runner(Cache(folder=KEPT, notify=lambda _: None))
        made = run_stages(self._original, settings, runner=runner)
        scores = [suspect.score for suspect in made.scan.suspects]
        facts: Cell = {
            "verdict": made.scan.verdict,
            "suspected": list(made.scan.targets),
            "score": round(max(scores), 2) if scores else None,
            "found": [told.get("found") for told in made.purified.history[-1].notes["rounds"]],
            "tau": made.scaled.history[-1].settings["tau"],
        }
        return made.purified, made.compressed, facts


class _ByCompression:
    """A method that only compresses the network, as it came or as a rival defended it."""

    def __init__(self, full: LoadedNetwork | PurifiedNetwork, seed: int) -> None:
        self._full, self._seed = full, seed
        self._images: SyntheticImages | None = None

    def __call__(self, settings: PipelineSettings) -> tuple[Network, Network, Cell]:
        if self._images is None:  # the same ones at every ratio
            chosen = settings.synthesize
            chosen = chosen.recovery() if settings.finetune.steps else chosen
            self._images = synthesize(self._full, chosen, seed=self._seed)
        scaled = scale(decompose(self._full, settings.decompose), settings.scale)
        plan = choose_plan(
            scaled, settings.ranks, images=self._images, recovery=settings.finetune, seed=self._seed
        )
        cut = truncate(scaled, plan, settings.truncate)
        tuned = finetune(cut, self._full, self._images, settings.finetune, seed=self._seed)
        return self._full, tuned, {}


def _rates(network: Network, published: PublishedNetwork, images: LabelledImages) -> Cell:
    return dict(rates_of(network, published, images))


_METHODS: dict[str, Callable[[LoadedNetwork, int], Run]] = {
    PLAIN: _ByCompression,
    CLP: lambda original, seed: _ByCompression(clp(original), seed),
}

if __name__ == "__main__":
    sys.exit(main())
