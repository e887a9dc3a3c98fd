"""Run one search on networks of ten classes: ``python -m benchmarks.studies.one_search gratings``.

Images are synthesised from each network, and one search runs alone on them: does it name the class
of the networks that were attacked by what it sees (stripes, or stamps that move one class alone),
and no class of the others? What it suspects is then purified as `compress` would, guided by this
search. Test images and stamps measure alone. A cell joins ``results/gratings.json``, or
``results/source-specific.json``, as it is done; the table stands beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch

from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.environment import environment
from benchmarks.metrics import accuracy, stamped_rates
from benchmarks.studies.compress_zoo import TEST_IMAGES
from benchmarks.studies.published import RESULTS
from benchmarks.studies.scan_selection import CPU_ZOO, networks_of_ten_classes
from benchmarks.suite.cells import Cell, write_whole
from benchmarks.suite.suite_run import read_attacked
from benchmarks.suite.suites import SUITES
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.purify import purify
from edgeclean.backdoor.scan import scan
from edgeclean.backdoor.searches import GRATINGS, ONE_SOURCE
from edgeclean.config import PipelineSettings, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.effort import LEVELS
from edgeclean.images.synthesize import synthesize
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import LoadedNetwork, Network, SyntheticImages

SEARCHES = {GRATINGS: "successes", ONE_SOURCE: "scores"}  # what its table shows of the classes
SEED, THREADS = 0, 1
OF_SUITE = "cpu "  # before the names of networks whose attack can be made again


def main() -> None:
    """Measure the cells that are missing, and write the table."""
    options = _parser().parse_args()
    torch.set_num_threads(THREADS)
    path = RESULTS / f"{options.search}.json"
    cells: dict[str, Cell] = json.loads(path.read_text())["cells"] if path.exists() else {}
    for name, (load, target) in ({} if options.draw else networks_of_ten_classes()).items():
        key = f"{name}, {options.effort}"
        if key in cells or (options.network and name not in options.network):
            continue
        cells[key] = {"network": name, "effort": options.effort, "true_target": target}
        cells[key] |= _measured(name, load(), options.search, options.effort)
        _write(options.search, cells)
        print(key, cells[key]["suspected"], "true:", target, flush=True)
    _write(options.search, cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run one search of the scan on networks.")
    parser.add_argument("search", choices=list(SEARCHES))
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--effort", choices=LEVELS, default="standard")
    parser.add_argument("--draw", action="store_true", help="the table, from what is there")
    return parser


def _measured(name: str, network: LoadedNetwork, search: str, effort: str) -> Cell:
    settings = settings_for(load_target("cpu"), {"seed": SEED, "effort": effort})
    images = synthesize(network, settings.synthesize, seed=SEED)
    start = time.process_time()
    report = scan(network, images, replace(settings.scan, searches=(search,)), seed=SEED)
    (record,) = report.searches
    cell: Cell = {
        "processor_s": round(time.process_time() - start, 1),
        "suspected": list(report.targets),
        "sources": [suspect.source for suspect in report.suspects],
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
        "before": rates_of_suite(attack, network),
        "after": rates_of_suite(attack, purified),
    }


def tested_images() -> LabelledImages:
    """Read the test images that measure networks of ten classes."""
    return read_pack(PACK_FOLDER / "cifar10-test.npz", TEST_IMAGES)


def rates_of_suite(name: str, network: Network) -> Cell:
    """Measure ACC and, but for ``clean``, ASR and RA of a network of the suite ``cpu``.

    Args:
        name: the attack, whose stamp measures.
        network: the attacked network, at any stage.
    """
    tested = tested_images()
    function = pixel_network(network).eval()
    rates: Cell = {"acc": accuracy(function, tested).percent}
    if name != "clean":
        (suite,) = SUITES["cpu"]
        attack, _ = read_attacked(CPU_ZOO / f"{name}.safetensors", suite, name, SEED)
        hit, right = stamped_rates(function, tested, attack.stamp, attack.relabel)
        rates |= {"asr": hit.percent, "ra": right.percent}
    return rates


def _write(search: str, cells: dict[str, Cell]) -> None:
    path = RESULTS / f"{search}.json"
    whole = {
        "command": f"python -m benchmarks.studies.one_search {search}",
        "seed": SEED,
        "test_images": TEST_IMAGES,
        "cells": cells,
    }
    write_whole(path, json.dumps(whole, indent=1))
    write_whole(path.with_suffix(".md"), table(cells, SEARCHES[search]))


def table(cells: dict[str, Cell], shown: str) -> str:
    """Return, for each network, its two first classes, the suspects and the rates.

    Args:
        cells: the cells by name.
        shown: the number that ranks the classes: ``successes`` or ``scores``.
    """
    number = {"successes": "success", "scores": "score"}[shown]
    lines = [
        f"| network | effort | true class | best class: {number} | next class: {number} | "
        "suspected | ACC/ASR before | ACC/ASR/RA purified | search, processor s |",
        "|---" * 9 + "|",
    ]
    for cell in cells.values():
        values = cell[shown]
        first, second = sorted(range(len(values)), key=lambda one: -values[one])[:2]
        true = "-" if cell["true_target"] is None else str(cell["true_target"])
        sources = cell.get("sources", [None] * len(cell["suspected"]))
        pairs = zip(cell["suspected"], sources, strict=True)
        named = [str(one) if source is None else f"{one} from {source}" for one, source in pairs]
        suspected = ", ".join(named) or "none"
        lines.append(
            f"| {cell['network']} | {cell['effort']} | {true} | {first}: {values[first]:.2f} | "
            f"{second}: {values[second]:.2f} | {suspected} | {_slashed(cell, 'before', 2)} | "
            f"{_slashed(cell, 'after', 3)} | {cell['processor_s']:.0f} |"
        )
    return "\n".join(lines)


def _slashed(cell: Cell, when: str, most: int) -> str:
    if when not in cell:
        return "-"
    return " / ".join(f"{cell[when][rate]:.1f}" for rate in ("acc", "asr", "ra")[:most])


if __name__ == "__main__":
    main()
