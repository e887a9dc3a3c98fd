"""Smaller images against fewer ranks: ``python -m benchmarks.studies.resolution``.

A network as it came is cut to a ratio with its images at their own size, and at every smaller size
that the planner tries, with the ranks that are then still to go. How much the outputs change, and
how many answers stay, is measured on procedural images (by which the planner chooses, after a short
recovery as well), on inverted ones that nothing was fitted to, and on test images, which no stage
sees; then each is recovered for as many steps, and measured again on the test images.
``results/resolution.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.environment import environment
from benchmarks.studies.depthwise_networks import trained_networks
from benchmarks.studies.published import RESULTS
from benchmarks.suite.cells import Cell, write_whole
from benchmarks.suite.kept_networks import KEPT
from benchmarks.suite.suite_run import read_attacked
from benchmarks.suite.suites import SUITES
from edgeclean.compression.clamp import scale
from edgeclean.compression.decompose import decompose
from edgeclean.compression.finetune import finetune
from edgeclean.compression.judge import Judge
from edgeclean.compression.plan import RankPlan
from edgeclean.compression.resolution import (
    CLEARLY,
    MOST_TRIED,
    briefly_recovered,
    choose_plan,
    plan_at,
    smaller_sizes,
)
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.config import PipelineSettings, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.images.synthesize import synthesize
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import (
    FinetunedNetwork,
    LoadedNetwork,
    ScaledNetwork,
    SyntheticImages,
    TruncatedNetwork,
)

PATH = RESULTS / "resolution.json"
RATIOS, SEED, THREADS, LEVEL = (2.0, 4.0), 0, 1, "quick"
INVERTED, TEST = 128, 1000
Network = tuple[Callable[[], LoadedNetwork], Callable[[], LabelledImages]]


def networks() -> dict[str, Network]:
    """Return what loads each network, and the test images that measure it."""
    lite = trained_networks()["efficientnet-lite0"]

    def package() -> LoadedNetwork:
        with TemporaryDirectory() as folder:
            return load_checkpoint(lite.write(Path(folder)), lite.spec, code_folder=Path())

    def of_suite(suite_name: str, attack: str) -> Network:
        (suite,) = SUITES[suite_name]
        path = KEPT / suite.name / "seed-0" / f"{attack}.safetensors"
        return (
            lambda: read_attacked(path, suite, attack, seed=0)[1].network,
            lambda: read_pack(PACK_FOLDER / "cifar10-test.npz", TEST),
        )

    return {
        "efficientnet-lite0": (package, lite.images),
        "cpu clean": of_suite("cpu", "clean"),
        "cpu wanet": of_suite("cpu", "wanet"),
        "mobile badnets": of_suite("mobile", "badnets"),
    }


def main() -> None:
    """Measure the rows that are missing, and write the table."""
    parser = argparse.ArgumentParser(description="Smaller images against fewer ranks.")
    parser.add_argument("--network", nargs="+", choices=list(networks()))
    parser.add_argument("--ratio", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--plans-alone", action="store_true", help="without whole recoveries")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    cells: list[Cell] = json.loads(PATH.read_text())["cells"] if PATH.exists() else []
    for name in options.network or networks():
        for ratio in options.ratio:
            if any((cell["network"], cell["ratio"]) == (name, ratio) for cell in cells):
                continue
            for cell in _measured(name, ratio, recover=not options.plans_alone):
                cells.append(cell)
                print(name, ratio, cell["resolution"], cell["recovered"], flush=True)
                _write(cells)
    _write(cells)


def _measured(name: str, ratio: float, *, recover: bool) -> Iterator[Cell]:
    """Yield a cell for each size, the network's own first."""
    load, test = networks()[name]
    network, real = load(), test()
    settings = settings_for(
        load_target("cpu"), {"seed": SEED, "effort": LEVEL, "ranks": {"ratio": ratio}}
    )
    images = synthesize(network, settings.synthesize, seed=SEED)
    scaled = scale(decompose(network, settings.decompose), settings.scale)
    others = synthesize(network, replace(settings.synthesize, count=INVERTED), seed=SEED + 1)
    judges = {
        "procedural": Judge.of(network),
        "inverted": _judge(network, others.pixels),
        "test": _judge(network, real.select(torch.arange(len(real))[:TEST]).floats()),
    }
    start = time.process_time()
    for plan in _plans(network, scaled, settings, images):
        truncated = truncate(scaled, plan, TruncateSettings())
        before = {kind: told(judge, truncated) for kind, judge in judges.items()}
        planned = time.process_time() - start
        taught = scaled, plan, network, images, settings.finetune
        tried = briefly_recovered(*taught, seed=SEED)
        recovered = None
        if recover:
            recovered = finetune(truncated, network, images, settings.finetune, seed=SEED)
        yield {
            "network": name,
            "ratio": ratio,
            "met": round(plan.ratio, 3),
            "resolution": _size(plan, network),
            "own": plan.resolution is None,
            **before,
            "tried": told(judges["procedural"], tried),
            "recovered": None if recovered is None else told(judges["test"], recovered),
            "planning_s": round(planned, 1),
            "environment": environment(),
        }
        start = time.process_time()


def _plans(
    network: LoadedNetwork,
    scaled: ScaledNetwork,
    settings: PipelineSettings,
    images: SyntheticImages,
) -> Iterator[RankPlan]:
    """Yield the plan of the network's own size, and of every one that the planner may try."""
    layers = replace(settings.ranks, forms=settings.ranks.of_layers)
    own = choose_plan(scaled, layers, images=images)
    yield own
    for size in smaller_sizes(network, own.ratio_asked):
        yield plan_at(size, scaled, layers, images)


def _judge(network: LoadedNetwork, pixels: Float[Tensor, "n c h w"]) -> Judge:
    return Judge.on(network, normalize(pixels, network.spec))


def told(judge: Judge, network: LoadedNetwork | TruncatedNetwork | FinetunedNetwork) -> Cell:
    """Return how much of the outputs changed, and how many answers stayed, in %."""
    return {
        "change": round(judge.change(network.module), 4),
        "agreement": round(100 * judge.agreement(network.module), 1),
    }


def _size(plan: RankPlan, network: LoadedNetwork) -> list[int]:
    return [*(plan.resolution or network.spec.input_shape[1:])]


def _write(cells: list[Cell]) -> None:
    whole = {
        "command": "python -m benchmarks.studies.resolution",
        "level": LEVEL,
        "seed": SEED,
        "cells": cells,
    }
    write_whole(PATH, json.dumps(whole, indent=1))
    write_whole(PATH.with_suffix(".md"), table(cells))


def table(cells: list[Cell]) -> str:
    """Return a row for each network, ratio and size; what the planner takes is marked."""
    lines = [
        "| network | MACs | pixels that layers see | change on procedural images | after a short "
        "recovery | on inverted images | on test images | agreement on test images | recovered |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        height, width = cell["resolution"]
        mark = " (taken)" if cell is _taken(cells, cell) else ""
        kinds = ("procedural", "tried", "inverted", "test")
        changes = " | ".join(f"{cell[kind]['change']:.2f}" for kind in kinds)
        recovered = cell["recovered"]
        agreement = "not run" if recovered is None else f"{recovered['agreement']:.1f}"
        lines.append(
            f"| {cell['network']} | {cell['ratio']:g}x | {height}x{width}{mark} | {changes} "
            f"| {cell['test']['agreement']:.1f} | {agreement} |"
        )
    return "\n".join(lines)


def _taken(cells: list[Cell], cell: Cell) -> Cell:
    """The row that the planner takes of this one's network and ratio (`choose_plan`)."""
    of = [one for one in cells if all(one[key] == cell[key] for key in ("network", "ratio"))]
    (own,) = (one for one in of if one["own"])

    def clearly_less(kind: str) -> list[Cell]:
        less = (one for one in of if one[kind]["change"] < CLEARLY * own[kind]["change"])
        return sorted(less, key=lambda one: float(one[kind]["change"]))

    tried = clearly_less("procedural")[:MOST_TRIED]
    return next((one for one in clearly_less("tried") if one in tried), own)


if __name__ == "__main__":
    main()
