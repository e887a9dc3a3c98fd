"""How far a step of the recovery goes: ``python -m benchmarks.studies.recovery``.

A network as it came is cut, at its own size of images, and recovered: by steps of one
length for every parameter, as it is, and by steps that are shares of each kernel's size, with the
BatchNorms behind kernels in them, of several rates. What the outputs changed is measured on
procedural images, which nothing was fitted to and by which the rate is chosen, and how many answers
stay on test images, which choose nothing. ``results/recovery.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from benchmarks.environment import environment
from benchmarks.studies.published import RESULTS
from benchmarks.studies.resolution import INVERTED, TEST, networks, told
from benchmarks.suite.cells import Cell, write_whole
from edgeclean.compression.clamp import scale
from edgeclean.compression.decompose import decompose
from edgeclean.compression.finetune import FinetuneSettings, finetune, times_taught
from edgeclean.compression.judge import Judge
from edgeclean.compression.resolution import choose_plan
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.errors import NotFiniteError
from edgeclean.images.synthesize import synthesize
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import (
    FinetunedNetwork,
    LoadedNetwork,
    SyntheticImages,
    TruncatedNetwork,
)

PATH = RESULTS / "recovery.json"
RATIOS, SEED, THREADS, LEVEL = (2.0, 4.0), 0, 1, "quick"
SHARES = (1e-3, 2e-3, 3e-3, 4e-3, 8e-3)
ONE_LENGTH = 2e-3
WAYS = (*((True, share) for share in SHARES), (False, ONE_LENGTH))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One cut, to be recovered in several ways."""

    network: str
    ratio: float
    steps: int

    def is_of(self, cell: Cell) -> bool:
        """Whether a cell was measured on this cut."""
        return all(cell[key] == getattr(self, key) for key in self.__slots__)


def main() -> None:
    """Measure the rows that are missing, and write the table."""
    parser = argparse.ArgumentParser(description="How far a step of the recovery goes.")
    parser.add_argument("--network", nargs="+", choices=list(networks()), default=list(networks()))
    parser.add_argument("--ratio", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument(
        "--share", type=float, nargs="+", choices=SHARES, help="these alone; all ways without it"
    )
    options = parser.parse_args()
    ways = [(True, share) for share in options.share] if options.share else list(WAYS)
    torch.set_num_threads(THREADS)
    for network in options.network:
        for ratio in options.ratio:
            asked = Asked(network=network, ratio=ratio, steps=options.steps)
            known = {(one["relative"], one["rate"]) for one in _read() if asked.is_of(one)}
            for cell in _measured(asked, [way for way in ways if way not in known]):
                print(network, ratio, cell["relative"], cell["rate"], cell["after"], flush=True)
                _write([*_read(), cell])
    _write(_read())


def _measured(asked: Asked, ways: list[tuple[bool, float]]) -> Iterator[Cell]:
    """Yield a cell for each way."""
    if not ways:
        return
    load, test = networks()[asked.network]
    network, real = load(), test()
    settings = settings_for(
        load_target("cpu"), {"seed": SEED, "effort": LEVEL, "ranks": {"ratio": asked.ratio}}
    )
    images = synthesize(network, settings.synthesize, seed=SEED)
    scaled = scale(decompose(network, settings.decompose), settings.scale)
    plan = choose_plan(scaled, settings.ranks, images=images)
    truncated = truncate(scaled, plan, TruncateSettings())
    others = synthesize(network, replace(settings.synthesize, count=INVERTED), seed=SEED + 1)
    seen = {"inverted": others.pixels, "test": real.select(torch.arange(len(real))[:TEST]).floats()}
    judges = {kind: Judge.on(network, normalize(one, network.spec)) for kind, one in seen.items()}
    judges["procedural"] = Judge.of(network)
    steps = round(asked.steps / times_taught(truncated, network))  # so many in the end
    for relative, rate in ways:
        how = replace(settings.finetune, steps=steps, relative=relative, learning_rate=rate)
        start = time.process_time()
        after = _recovered(truncated, network, images, how)
        yield {
            "network": asked.network,
            "ratio": asked.ratio,
            "steps": asked.steps,
            "relative": relative,
            "rate": rate,
            "before": _told(judges, truncated),
            "after": None if after is None else _told(judges, after),
            "processor_s": round(time.process_time() - start, 1),
            "environment": environment(),
        }


def _recovered(
    truncated: TruncatedNetwork,
    network: LoadedNetwork,
    images: SyntheticImages,
    settings: FinetuneSettings,
) -> FinetunedNetwork | None:
    """Recover; nothing where the loss is not finite any more."""
    try:
        return finetune(truncated, network, images, settings, seed=SEED)
    except NotFiniteError:
        return None


def _told(judges: dict[str, Judge], network: TruncatedNetwork | FinetunedNetwork) -> Cell:
    return {kind: told(judge, network) for kind, judge in judges.items()}


def _read() -> list[Cell]:
    cells: list[Cell] = json.loads(PATH.read_text())["cells"] if PATH.exists() else []
    return cells


def _write(cells: list[Cell]) -> None:
    whole = {
        "command": "python -m benchmarks.studies.recovery",
        "level": LEVEL,
        "seed": SEED,
        "cells": cells,
    }
    write_whole(PATH, json.dumps(whole, indent=1))
    write_whole(PATH.with_suffix(".md"), table(cells))


def table(cells: list[Cell]) -> str:
    """Return a row for each cut, a column for each way: change on procedural images, agreement."""
    ways = [f"shares of {share:g}" for share in SHARES] + [f"one length, {ONE_LENGTH:g}"]
    lines = [
        f"| network | MACs | steps | before | {' | '.join(ways)} |",
        "|---|---|---|---|" + "---|" * len(ways),
    ]
    cuts = dict.fromkeys(Asked(**{key: cell[key] for key in Asked.__slots__}) for cell in cells)
    for cut in cuts:
        of = {(one["relative"], one["rate"]): one for one in cells if cut.is_of(one)}
        before = next(iter(of.values()))["before"]
        row = " | ".join(_cell(of[way]["after"]) if way in of else "not run" for way in WAYS)
        lines.append(f"| {cut.network} | {cut.ratio:g}x | {cut.steps} | {_cell(before)} | {row} |")
    return "\n".join(lines)


def _cell(one: Cell | None) -> str:
    if one is None:
        return "not finite"
    return f"{one['procedural']['change']:.4f} / {one['test']['agreement']:.1f}"


if __name__ == "__main__":
    main()
