"""Time scans over classes and sizes of images: ``python -m benchmarks.studies.scan_sizes``.

Networks of one architecture and one made-up task (`networks.sized`), a backdoored one and a
control of each, are scanned at ``--effort quick``. Training, making the images and scanning are
three processes, so that the scan's peak, the operating system's, is its own; a cell joins
``results/scan-sizes.json`` as it is done, and cells that are there are not run again.
``results/scan-sizes.svg`` and ``.md`` are drawn from that file alone (``--draw``). Processor
seconds are the measure; wall time includes the machine's other work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.environment import environment, peak_mib
from benchmarks.networks.sized import sized, spec, task, trained
from benchmarks.rendering.drawing import ALARM, INK, SERIES, new_figure, save, styled
from benchmarks.studies.published import RESULTS
from benchmarks.suite.cells import Cell, write_whole
from edgeclean.backdoor.scan import scan
from edgeclean.config import PipelineSettings, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.images.synthesize import synthesize
from edgeclean.networks.state import LoadedNetwork, SyntheticImages

PATH = RESULTS / "scan-sizes.json"
CLASSES, SIZES = (2, 10, 43, 100, 1000), (32, 64, 96, 224)
POINTS = [(classes, 32) for classes in CLASSES] + [(10, size) for size in SIZES[1:]]
SEEDS, THREADS, LEVEL = (0, 1, 2), 1, "quick"
FOLDER = Path(__file__).parents[2] / ".bench" / "scan-sizes"
Key = tuple[int, int, int, bool]  # classes, size, seed, backdoored
T = TypeVar("T")


def main() -> None:
    """Measure the cells that are missing, and draw."""
    options = _parser().parse_args()
    cells: list[Cell] = json.loads(PATH.read_text())["cells"] if PATH.exists() else []
    for wanted in [] if options.draw else _missing(cells, options):
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawned, max_tasks_per_child=1) as pool:
            told = [pool.submit(one, *wanted).result() for one in (train, make_images, measure)]
        cell: Cell = {key: value for part in told for key, value in part.items()}
        cells = sorted([*cells, cell], key=_key)
        _write(cells)
        print(*wanted, cell["verdict"], flush=True)
    _write(cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time scans over classes and sizes.")
    parser.add_argument("--seed", type=int, action="append", choices=SEEDS)
    parser.add_argument("--classes", type=int, action="append", choices=CLASSES)
    parser.add_argument("--size", type=int, action="append", choices=SIZES)
    parser.add_argument("--draw", action="store_true", help="from the JSON that is there")
    return parser


def _missing(cells: Sequence[Cell], options: argparse.Namespace) -> list[Key]:
    known = {_key(cell) for cell in cells}
    wanted = [
        (classes, size, seed, backdoored)
        for seed in options.seed or SEEDS
        for classes, size in POINTS
        for backdoored in (True, False)
        if classes in (options.classes or CLASSES) and size in (options.size or SIZES)
    ]
    return [one for one in wanted if one not in known]


def _key(cell: Cell) -> Key:
    return cell["classes"], cell["size"], cell["seed"], cell["backdoored"]


def train(classes: int, size: int, seed: int, backdoored: bool) -> dict[str, float]:
    """Train and keep one network; return its accuracy, and how many images the patch sends away."""
    torch.set_num_threads(THREADS)
    module, rates = trained(task(classes, size, seed), seed, backdoored=backdoored)
    FOLDER.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), _kept(classes, size, seed, backdoored))
    return rates


def make_images(classes: int, size: int, seed: int, backdoored: bool) -> Cell:
    """Make and keep the images of one network that was kept; return how long that took."""
    torch.set_num_threads(THREADS)
    network = _network(classes, size, seed, backdoored)
    settings = _settings(seed).synthesize
    synthesis, images = _timed(lambda: synthesize(network, settings, seed=seed))
    kept = _kept(classes, size, seed, backdoored, what="images")
    torch.save({"pixels": images.pixels, "labels": images.labels, "origin": images.origin}, kept)
    return {"synthesis": synthesis}


def measure(classes: int, size: int, seed: int, backdoored: bool) -> Cell:
    """Scan one network by its images, both of which were kept, and measure it."""
    torch.set_num_threads(THREADS)
    network, settings = _network(classes, size, seed, backdoored), _settings(seed)
    kept = _kept(classes, size, seed, backdoored, what="images")
    images = SyntheticImages(**torch.load(kept, weights_only=True))
    before = peak_mib()
    scanning, report = _timed(lambda: scan(network, images, settings.scan, seed=seed))
    chosen = report.selection
    return {
        "classes": classes,
        "size": size,
        "seed": seed,
        "backdoored": backdoored,
        "target": task(classes, size, seed).target if backdoored else None,
        "verdict": report.verdict,
        "suspected": list(report.targets),
        "searches": sorted({suspect.search for suspect in report.suspects}),
        "named": None if chosen is None else [one.target for one in chosen.named],
        "searched": classes if chosen is None else len(chosen.searched),
        "scan": scanning,
        "before_mib": before,
        "peak_mib": peak_mib(),
        "environment": environment(),
    }


def _network(classes: int, size: int, seed: int, backdoored: bool) -> LoadedNetwork:
    module = sized(classes, (3, size, size))
    kept = _kept(classes, size, seed, backdoored)
    module.load_state_dict(torch.load(kept, weights_only=True))
    return LoadedNetwork(module=module.eval(), spec=spec(classes, size), source_sha256="0" * 64)


def _settings(seed: int) -> PipelineSettings:
    return settings_for(load_target("cpu"), {"seed": seed, "effort": LEVEL})


def _kept(classes: int, size: int, seed: int, backdoored: bool, *, what: str = "weights") -> Path:
    words = "badnets" if backdoored else "control"
    return FOLDER / f"{classes}-classes-{size}-pixels-{words}-seed-{seed}-{what}.pt"


def _timed(run: Callable[[], T]) -> tuple[dict[str, float], T]:
    wall, spent = time.perf_counter(), time.process_time()
    result = run()
    return {
        "wall_s": round(time.perf_counter() - wall, 1),
        "processor_s": round(time.process_time() - spent, 1),
    }, result


def _write(cells: Sequence[Cell]) -> None:
    whole = {"command": "python -m benchmarks.studies.scan_sizes", "level": LEVEL, "cells": cells}
    write_whole(PATH, json.dumps(whole, indent=1))
    write_whole(PATH.with_suffix(".md"), table(cells))
    save(draw(cells), PATH.with_suffix(".svg"))


def table(cells: Sequence[Cell]) -> str:
    """Return a row for each number of classes and size of image."""
    lines = [
        "| classes | pixels a side | searched by gradients | scan, processor s | times ten classes "
        "at 32 | peak, MiB above the network and images | backdoored: found, as the true class "
        "| controls suspected |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ten = _seconds(_at(cells, 10, 32))
    for classes, size in POINTS:
        there = _at(cells, classes, size)
        if not there:
            lines.append(f"| {classes:,} | {size} | not yet run | - | - | - | - | - |")
            continue
        bad = [cell for cell in there if cell["backdoored"]]
        fine = [cell for cell in there if not cell["backdoored"]]
        found = sum(cell["verdict"] == "suspected" for cell in bad)
        right = sum(cell["target"] in cell["suspected"] for cell in bad)
        alarms = sum(cell["verdict"] == "suspected" for cell in fine)
        lines.append(
            f"| {classes:,} | {size} | {there[0]['searched']} | {_seconds(there):.0f} | "
            f"{_seconds(there) / ten:.2f} | {_memory(there):.0f} | "
            f"{found} of {len(bad)}, {right} | {alarms} of {len(fine)} |"
        )
    return "\n".join(lines)


@styled
def draw(cells: Sequence[Cell]) -> Figure:
    """Draw time and memory over the classes, and over the pixels."""
    figure = new_figure(width=6.6, height=4.2)
    (over_classes, over_size), (memory_classes, memory_size) = figure.subplots(2, 2)
    of_classes = [(classes, _at(cells, classes, 32)) for classes in CLASSES]
    of_size = [(size, _at(cells, 10, size)) for size in SIZES]
    for axes, points in ((over_classes, of_classes), (over_size, of_size)):
        _line(axes, [(x, _seconds(there)) for x, there in points if there], SERIES)
        axes.set_ylabel("scan, processor seconds")
    for axes, points in ((memory_classes, of_classes), (memory_size, of_size)):
        _line(axes, [(x, _memory(there)) for x, there in points if there], ALARM)
        axes.set_ylabel("peak of the scan, MiB")
    for axes in (over_classes, memory_classes):
        axes.set_xscale("log")
        axes.set_xticks(CLASSES, [f"{one:,}" for one in CLASSES], minor=False)
        axes.set_xlabel("classes, at 32 pixels")
    for axes in (over_size, memory_size):
        axes.set_xticks(SIZES)
        axes.set_xlabel("pixels a side, at 10 classes")
    return figure


def _line(axes: Axes, points: Sequence[tuple[int, float]], colour: str) -> None:
    axes.plot(*zip(*points, strict=True), color=colour, marker="o", ms=4) if points else None
    for x, value in points:
        axes.annotate(f"{value:.0f}", (x, value), (0, 5), textcoords="offset points", color=INK)
    axes.set_ylim(0, 1.3 * max((value for _, value in points), default=1))


def _at(cells: Sequence[Cell], classes: int, size: int) -> list[Cell]:
    return [cell for cell in cells if (cell["classes"], cell["size"]) == (classes, size)]


def _seconds(cells: Sequence[Cell]) -> float:
    return median(cell["scan"]["processor_s"] for cell in cells) if cells else float("nan")


def _memory(cells: Sequence[Cell]) -> float:
    return median(cell["peak_mib"] - cell["before_mib"] for cell in cells)


if __name__ == "__main__":
    main()
