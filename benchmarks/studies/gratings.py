"""Search networks for stripes: ``python -m benchmarks.studies.gratings``.

Images are synthesised from each network, and the search for gratings runs alone on them: does it
name the class of the network that was attacked by stripes (SIG), and no class of the others? What
it suspects is then purified as `compress` would, guided by this one search. Test images and stamps
measure alone. A cell joins ``results/gratings.json`` as it is done; the table is
``results/gratings.md``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch

from benchmarks.attacks.table import ATTACKS
from benchmarks.data.images import PACK_FOLDER, read_pack
from benchmarks.environment import environment
from benchmarks.metrics import accuracy, stamped_rates
from benchmarks.studies.compress_zoo import TEST_IMAGES
from benchmarks.studies.published import RESULTS
from benchmarks.studies.scan_selection import networks_of_ten_classes
from benchmarks.suite.cells import Cell, write_whole
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.purify import purify
from edgeclean.backdoor.scan import scan
from edgeclean.backdoor.searches import GRATINGS
from edgeclean.config import PipelineSettings, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.effort import LEVELS
from edgeclean.images.synthesize import synthesize
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import LoadedNetwork, Network, SyntheticImages

PATH = RESULTS / "gratings.json"
SEED, THREADS = 0, 1
OF_SUITE = "cpu "  # before the names of networks whose attack can be made again


def main() -> None:
    """Measure the cells that are missing, and write the table."""
    options = _parser().parse_args()
    torch.set_num_threads(THREADS)
    cells: dict[str, Cell] = json.loads(PATH.read_text())["cells"] if PATH.exists() else {}
    for name, (load, target) in ({} if options.draw else networks_of_ten_classes()).items():
        key = f"{name}, {options.effort}"
        if key in cells or (options.network and name not in options.network):
            continue
        cells[key] = {"network": name, "effort": options.effort, "true_target": target}
        cells[key] |= _measured(name, load(), options.effort)
        _write(cells)
        print(key, cells[key]["suspected"], "true:", target, flush=True)
    _write(cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Search networks for stripes over the image.")
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--effort", choices=LEVELS, default="standard")
    parser.add_argument("--draw", action="store_true", help="the table, from what is there")
    return parser


def _measured(name: str, network: LoadedNetwork, effort: str) -> Cell:
    settings = settings_for(load_target("cpu"), {"seed": SEED, "effort": effort})
    images = synthesize(network, settings.synthesize, seed=SEED)
    start = time.process_time()
    report = scan(network, images, replace(settings.scan, searches=(GRATINGS,)), seed=SEED)
    (record,) = report.searches
    cell: Cell = {
        "processor_s": round(time.process_time() - start, 1),
        "suspected": list(report.targets),
        "threshold": round(record.threshold, 2),
        "scores": [round(score, 2) for score in record.scores],
        "successes": [round(success, 4) for success in record.successes],
        "environment": environment(),
    }
    if report.suspects and name.startswith(OF_SUITE):
        cell |= _purified(name.removeprefix(OF_SUITE), network, images, report, settings)
    return cell


def _purified(
    attack: str,
    network: LoadedNetwork,
    images: SyntheticImages,
    report: ScanReport,
    settings: PipelineSettings,
) -> Cell:
    start = time.process_time()
    purified = purify(network, images, report, settings.purify, seed=SEED)
    return {
        "purify_processor_s": round(time.process_time() - start, 1),
        "rounds": purified.history[-1].notes["rounds"],
        "before": _rates(attack, network),
        "after": _rates(attack, purified),
    }


def _rates(name: str, network: Network) -> Cell:
    tested = read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES)
    function = pixel_network(network).eval()
    rates: Cell = {"acc": accuracy(function, tested).percent}
    if name != "clean":
        attack = ATTACKS[name](network.spec.classes, network.spec.input_shape[1:])
        hit, right = stamped_rates(function, tested, attack.stamp, attack.relabel)
        rates |= {"asr": hit.percent, "ra": right.percent}
    return rates


def _write(cells: dict[str, Cell]) -> None:
    whole = {
        "command": "python -m benchmarks.studies.gratings",
        "seed": SEED,
        "test_images": TEST_IMAGES,
        "cells": cells,
    }
    write_whole(PATH, json.dumps(whole, indent=1))
    write_whole(PATH.with_suffix(".md"), table(cells))


def table(cells: dict[str, Cell]) -> str:
    """Return, for each network, the two classes most reached, the suspects and the rates."""
    lines = [
        "| network | effort | true class | best class: success | next class: success | suspected | "
        "ACC/ASR before | ACC/ASR/RA purified | search, processor s |",
        "|---" * 9 + "|",
    ]
    for cell in cells.values():
        success = cell["successes"]
        first, second = sorted(range(len(success)), key=lambda one: -success[one])[:2]
        true = "-" if cell["true_target"] is None else str(cell["true_target"])
        suspected = ", ".join(str(one) for one in cell["suspected"]) or "none"
        lines.append(
            f"| {cell['network']} | {cell['effort']} | {true} | {first}: {success[first]:.2f} | "
            f"{second}: {success[second]:.2f} | {suspected} | {_slashed(cell, 'before', 2)} | "
            f"{_slashed(cell, 'after', 3)} | {cell['processor_s']:.0f} |"
        )
    return "\n".join(lines)


def _slashed(cell: Cell, when: str, most: int) -> str:
    if when not in cell:
        return "-"
    return " / ".join(f"{cell[when][rate]:.1f}" for rate in ("acc", "asr", "ra")[:most])


if __name__ == "__main__":
    main()
