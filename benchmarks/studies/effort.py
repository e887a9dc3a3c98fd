"""Run the main job at every level of effort: ``python -m benchmarks.studies.effort --level quick``.

Each network (those of the zoo, and ``demo``) goes through ``edgeclean.pipeline.compress`` in a
process of its own, with nothing kept of earlier runs, so that its seconds are a whole run's. Test
images and the trigger, which no stage sees, measure the network before and after. A cell joins
``results/effort.json`` as it is done; cells that are there are not run again without ``--again``.
``results/effort.md`` is the table; its rows of ``standard`` come from ``results/compress-zoo.json``
where they are not measured here. Wall time includes the machine's other work.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import wall_seconds
from benchmarks.rendering.demo_levels import DEMO_NAME, EFFORT, RESULTS, Cell, known_cells

TARGET, DEMO_TARGET = "cpu", "jetson"  # the demo's as in the Makefile
FOLDER = Path(__file__).parents[2] / ".bench" / "effort"


class Forecast:
    """A progress that only keeps the expected stages."""

    def __init__(self) -> None:
        self.stages: tuple[object, ...] = ()

    def __call__(self, description: str, done: int, total: int) -> None:
        """Ignore a step of progress."""

    def expect(self, stages: Sequence[object]) -> None:
        """Keep the expected stages."""
        self.stages = tuple(stages)


def main() -> None:
    """Run the chosen cells that are missing and write the table; or run one, as a child of that."""
    options = _parser().parse_args()
    if options.cell:
        write_cell(options.cell, options.level[0], options.seed)
        return
    networks = options.network or network_names()
    for level in options.level:
        for name in networks:
            if (name, level, options.seed) not in known_cells() or options.again:
                words = ["--cell", name, "--level", level, "--seed", str(options.seed)]
                subprocess.run(  # noqa: S603 - our own words
                    [sys.executable, "-m", "benchmarks.studies.effort", *words], check=True
                )
                written = json.loads(cell_path(name, level, options.seed).read_text())
                write_results({**known_cells(), (name, level, options.seed): written})
                print(name, level, "done", flush=True)
    write_results(known_cells())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", nargs="+", default=["quick", "thorough"])
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="also cells that are there already")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser


def network_names() -> list[str]:
    from benchmarks.studies.published import published_networks

    return [DEMO_NAME, *published_networks()]


def write_cell(name: str, level: str, seed: int) -> None:
    """Run and measure one network at one level."""
    import torch

    from benchmarks.data.images import PACK_FOLDER, read_pack
    from benchmarks.environment import environment
    from benchmarks.networks.train_demo import published_demo
    from benchmarks.studies.compress_zoo import TEST_IMAGES, THREADS, rates_of
    from benchmarks.studies.published import published_networks
    from edgeclean.config import settings_for
    from edgeclean.devices.targets import load_target
    from edgeclean.pipeline import compress
    from edgeclean.progress import expected_seconds

    torch.set_num_threads(THREADS)
    published = published_demo() if name == DEMO_NAME else published_networks()[name]
    images = read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES)
    target, forecast = load_target(DEMO_TARGET if name == DEMO_NAME else TARGET), Forecast()
    settings = settings_for(target, {"seed": seed, "effort": level, "ranks": {"ratio": 2.0}})
    start, before = time.perf_counter(), processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        written = compress(
            published.path,
            published.spec,
            Path(folder) / "bundle",
            settings,
            target=target,
            code_folder=published.code_folder,
            progress=forecast,
        )
    seconds, spent = time.perf_counter() - start, processor_seconds() - before
    outcome = written.compression
    states = {
        "before": outcome.original,
        "purified": outcome.purified,
        "compressed": outcome.compressed,
    }
    cell: Cell = {
        "network": name,
        "level": level,
        "seed": seed,
        "verdict": outcome.scan.verdict,
        "suspected": list(outcome.scan.targets),
        "true_target": published.target,
        "target": target.name,
        **{state: rates_of(one, published, images) for state, one in states.items()},
        "wall_s": round(seconds, 1),
        "processor_s": round(spent, 1),
        "expected_s": {
            stage: round(one, 1)
            for stage, one in expected_seconds(forecast.stages).items()  # type: ignore[arg-type]
        },
        "stages": written.report["stages"],
        "test_images": TEST_IMAGES,
        "environment": environment(),
    }
    path = cell_path(name, level, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cell, indent=1, sort_keys=True) + "\n")


def cell_path(name: str, level: str, seed: int) -> Path:
    """Return the path of the cell that a child writes."""
    return FOLDER / f"{name}-{level}-seed{seed}.json"


def processor_seconds() -> float:
    """Return user and system time of this process and of those that it waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def write_results(known: dict[tuple[str, str, int], Cell]) -> None:
    """Write ``effort.json``, and the table from it."""
    cells = [known[key] for key in sorted(known)]
    command = "python -m benchmarks.studies.effort --level L... --network NAME"
    whole = {"command": command, "cells": cells}
    EFFORT.write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    EFFORT.with_suffix(".md").write_text(table([*cells, *standard_cells(known)]))


def standard_cells(known: dict[tuple[str, str, int], Cell]) -> list[Cell]:
    """Return the cells of `compress_zoo`, at the defaults, that were not measured here."""
    path = RESULTS / "compress-zoo.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    return [
        cell | {"level": "standard", "processor_s": None}
        for cell in cells
        if cell["ratio_asked"] == 2
        and (cell["network"], "standard", cell["seed"]) not in known
        and any(network == cell["network"] and seed == cell["seed"] for network, _, seed in known)
    ]


def table(cells: list[Cell]) -> str:
    """Return a table with a row for each network and level, the quicker first."""
    order = ("quick", "standard", "thorough")
    lines = [
        "| network | effort | ACC/ASR before | ACC/ASR/RA purified | ACC/ASR/RA compressed "
        "| scan: target (true) | wall s | processor s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in sorted(cells, key=lambda one: (one["network"], order.index(one["level"]))):
        lines.append(_row(cell))
    return "\n".join(lines) + "\n"


def _row(cell: Cell) -> str:
    def rates(state: str, *keys: str) -> str:
        return " / ".join(f"{cell[state][key]:.2f}" for key in keys)

    suspected = ", ".join(map(str, cell["suspected"])) or "not found"
    spent = "-" if cell["processor_s"] is None else f"{cell['processor_s']:.0f}"
    return (
        f"| {cell['network']} | {cell['level']} | {rates('before', 'acc', 'asr')} "
        f"| {rates('purified', 'acc', 'asr', 'ra')} | {rates('compressed', 'acc', 'asr', 'ra')} "
        f"| {suspected} ({cell['true_target']}) | {wall_seconds(cell)} | {spent} |"
    )


if __name__ == "__main__":
    main()
