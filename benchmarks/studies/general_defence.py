"""What the general defence is worth: ``python -m benchmarks.studies.general_defence``.

Where the scan suspects nothing, purification only makes the network consistent under random stamps
(`purify`). Here every network of ten classes has it, also those with a backdoor, as if the scan had
not seen theirs: how much of it goes, and what does accuracy pay? Test images and stamps measure
alone. A cell joins ``results/general-defence.json`` as it is done; the table stands beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import torch

from benchmarks.environment import environment
from benchmarks.studies.compress_zoo import rates_of
from benchmarks.studies.one_search import OF_SUITE, rates_of_suite, tested_images
from benchmarks.studies.published import RESULTS, published_networks
from benchmarks.studies.scan_selection import networks_of_ten_classes
from benchmarks.suite.cells import Cell, write_whole
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.purify import purify
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.images.synthesize import synthesize
from edgeclean.networks.state import LoadedNetwork, Network

PATH = RESULTS / "general-defence.json"
SEED, THREADS = 0, 1
OF_ZOO = "zoo "
BEFORE = "as it came"
STRENGTHS = {"at a tenth of unlearning's rate": 0.1, "at unlearning's rate": 1.0}
WAYS = (BEFORE, *STRENGTHS)


def main() -> None:
    """Measure the cells that are missing, and write the table."""
    options = _parser().parse_args()
    torch.set_num_threads(THREADS)
    cells: dict[str, Cell] = json.loads(PATH.read_text())["cells"] if PATH.exists() else {}
    for name, (load, target) in ({} if options.draw else networks_of_ten_classes()).items():
        if name in cells or (options.network and name not in options.network):
            continue
        cells[name] = {"network": name, "true_target": target, **_measured(name, load())}
        _write(cells)
        print(name, *(f"{way}: {_slashed(cells[name][way])}" for way in WAYS), sep=", ", flush=True)
    _write(cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the general defence.")
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--draw", action="store_true", help="the table, from what is there")
    return parser


def _measured(name: str, network: LoadedNetwork) -> Cell:
    settings = settings_for(load_target("cpu"), {"seed": SEED})
    nothing = ScanReport(verdict="not found", suspects=(), searches=(), images=0)
    images = synthesize(network, settings.synthesize, seed=SEED)
    cell: Cell = {BEFORE: _rates(name, network), "environment": environment()}
    for way, strength in STRENGTHS.items():
        start, defence = time.process_time(), replace(settings.purify, general_strength=strength)
        defended = purify(network, images, nothing, defence, seed=SEED)
        spent = round(time.process_time() - start, 1)
        cell[way] = {**_rates(name, defended), "processor_s": spent}
    return cell


def _rates(name: str, network: Network) -> Cell:
    if name.startswith(OF_SUITE):
        return rates_of_suite(name.removeprefix(OF_SUITE), network)
    return rates_of(network, published_networks()[name.removeprefix(OF_ZOO)], tested_images())


def _write(cells: dict[str, Cell]) -> None:
    whole = {"command": "python -m benchmarks.studies.general_defence", "seed": SEED}
    write_whole(PATH, json.dumps({**whole, "cells": cells}, indent=1))
    write_whole(PATH.with_suffix(".md"), table(list(cells.values())))


def table(cells: Sequence[Cell]) -> str:
    """Return ACC, ASR and RA of each network by each way, and the means of those attacked."""
    lines = [
        "| network | true class | " + " | ".join(f"ACC/ASR/RA {way}" for way in WAYS) + " |",
        "|---" * (2 + len(WAYS)) + "|",
    ]
    for cell in cells:
        true = "-" if cell["true_target"] is None else str(cell["true_target"])  # all-to-all: none
        rates = [_slashed(cell[way]) for way in WAYS]
        lines.append(f"| {cell['network']} | {true} | " + " | ".join(rates) + " |")
    attacked = [cell for cell in cells if not cell["network"].endswith("clean")]
    if attacked:
        rates = [_slashed(_mean([cell[way] for cell in attacked])) for way in WAYS]
        lines.append(f"| **mean of {len(attacked)} attacked** | | " + " | ".join(rates) + " |")
    return "\n".join(lines)


def _mean(rates: Sequence[Cell]) -> Cell:
    return {key: mean(one[key] for one in rates) for key in ("acc", "asr", "ra")}


def _slashed(rates: Cell) -> str:
    return " / ".join(f"{rates[key]:.1f}" for key in ("acc", "asr", "ra") if key in rates)


if __name__ == "__main__":
    main()
