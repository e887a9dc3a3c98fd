"""Ask networks for their sinks: ``python -m benchmarks.studies.scan_selection``.

A scan of more than twelve classes searches those that the network names (`backdoor.selection`).
Here the naming runs on networks with known backdoors of ten classes as well, where the scan has no
use for it: is the attacker's class among those named, and by which search? On the networks of 43
traffic signs that were trained (`networks.train_signs`), ``--verdicts`` also searches patches
twice: towards the selection, and towards all classes. A cell joins ``results/scan-selection.json``
as it is done; the table is ``results/scan-selection.md``. Triggers and true classes serve
measuring alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import torch
from safetensors.torch import load_file

from benchmarks.attacks.table import ATTACKS
from benchmarks.environment import environment
from benchmarks.networks.train_signs import sign_networks
from benchmarks.studies.published import RESULTS, published_networks
from benchmarks.suite.cells import Cell, write_whole
from benchmarks.suite.kept_networks import KEPT
from benchmarks.suite.suites import CIFAR10, image_spec
from edgeclean.backdoor.families import FAMILIES
from edgeclean.backdoor.findings import SearchRecord, Suspect
from edgeclean.backdoor.scan import under_test
from edgeclean.backdoor.searches import NAMING_SEED, Probe, search_family
from edgeclean.backdoor.selection import LAST_LAYER, MOST_NAMED, named_first
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.images.synthesize import synthesize
from edgeclean.load.architectures import build_architecture
from edgeclean.networks.state import LoadedNetwork

PATH = RESULTS / "scan-selection.json"
LEVEL, SEED, THREADS = "quick", 0, 1
CPU_ZOO = KEPT / "cpu" / "seed-0"
JUDGED = ("masked patch",)  # the family whose verdicts are compared
SOURCES = ("patch bank", *FAMILIES, LAST_LAYER)
Loaded = Callable[[], LoadedNetwork]


def main() -> None:
    """Measure the cells that are missing, and write the table."""
    options = _parser().parse_args()
    torch.set_num_threads(THREADS)
    cells: dict[str, Cell] = json.loads(PATH.read_text())["cells"] if PATH.exists() else {}
    for name, (load, target) in ({} if options.draw else networks()).items():
        if options.network and name not in options.network:
            continue
        cell = cells.get(name)
        if cell is None:
            cells[name] = cell = _named(load(), target)
            _write(cells)
            print(name, cell["named"], "true:", target, flush=True)
        if options.verdicts and cell["classes"] > CIFAR10["classes"] and "verdicts" not in cell:
            cell["verdicts"] = _verdicts(load())
            _write(cells)
            print(name, cell["verdicts"], flush=True)
    _write(cells)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Ask networks with known backdoors for sinks.")
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--verdicts", action="store_true", help="search 43 classes both ways")
    parser.add_argument("--draw", action="store_true", help="the table, from what is there")
    return parser


def networks() -> dict[str, tuple[Loaded, int | None]]:
    """Return a way to load each network, and the attacker's one class if it has one, by name."""
    found = networks_of_ten_classes()
    for name, (network, attack, _) in sign_networks().items():
        target = None if name == "clean" else attack.target
        found[f"signs {name}"] = (lambda network=network: network, target)  # type: ignore[misc]
    return found


def networks_of_ten_classes() -> dict[str, tuple[Loaded, int | None]]:
    """Return those of `networks` that need no training: the published and the committed ones."""
    found: dict[str, tuple[Loaded, int | None]] = {
        f"zoo {name}": (one.load, one.target) for name, one in published_networks().items()
    }
    for path in sorted(CPU_ZOO.glob("*.safetensors")):
        target = None if path.stem == "clean" else _target_of(path.stem)
        found[f"cpu {path.stem}"] = (lambda path=path: _kept(path), target)  # type: ignore[misc]
    return found


def _target_of(attack: str) -> int | None:
    return ATTACKS[attack](10, (32, 32)).target


def _kept(path: object) -> LoadedNetwork:
    """Load a network of the suite ``cpu`` without its attack's own networks."""
    spec = image_spec("resnet20", **CIFAR10)
    module = build_architecture(spec.architecture, spec, ())
    weights = {
        name.removeprefix("network."): tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(str(path)).items()
        if name.startswith("network.")
    }
    module.load_state_dict(weights)
    return LoadedNetwork(module=module.eval(), spec=spec, source_sha256="0" * 64)


def _probe(network: LoadedNetwork, run: Sequence[str]) -> Probe:
    settings = settings_for(load_target("cpu"), {"seed": SEED, "effort": LEVEL})
    images = synthesize(network, settings.synthesize, seed=SEED)
    module, evidence = under_test(network, images.pixels[: settings.scan.images])
    return Probe(
        module=module,
        evidence=evidence,
        classes=network.spec.classes,
        steps=settings.scan.steps,
        restarts=settings.scan.restarts,
        candidates=settings.scan.bank_candidates,
        seed=SEED,
        run=tuple(run),
    )


def _named(network: LoadedNetwork, target: int | None) -> Cell:
    probe = _probe(network, SOURCES)
    start = time.process_time()
    generator = torch.Generator().manual_seed(SEED + NAMING_SEED)
    named = probe.named(FAMILIES, generator)
    return {
        "classes": network.spec.classes,
        "true_target": target,
        "named": named,
        "processor_s": round(time.process_time() - start, 1),
        "environment": environment(),
    }


def _verdicts(network: LoadedNetwork) -> dict[str, Cell]:
    """Search patches towards the selection, and towards all classes."""
    verdicts = {}
    for words, run in (("selection", SOURCES), ("all", ())):
        probe = _probe(network, run)
        start = time.process_time()
        found = {
            name: search_family(probe, name, torch.Generator().manual_seed(SEED + index))
            for index, name in enumerate(JUDGED)
        }
        verdicts[words] = {
            "searched": len(probe.selection.searched),
            "processor_s": round(time.process_time() - start, 1),
            "searches": {name: _facts(*both) for name, both in found.items()},
        }
    return verdicts


def _facts(record: SearchRecord, suspects: Sequence[Suspect]) -> Cell:
    return {
        "suspected": [one.target for one in suspects],
        "threshold": round(record.threshold, 2),
        "scores": [round(score, 2) for score in record.scores],
        "costs": [round(cost, 3) if cost < float("inf") else None for cost in record.costs],
    }


def _write(cells: dict[str, Cell]) -> None:
    whole = {
        "command": "python -m benchmarks.studies.scan_selection --verdicts",
        "level": LEVEL,
        "seed": SEED,
        "cells": cells,
    }
    write_whole(PATH, json.dumps(whole, indent=1))
    write_whole(PATH.with_suffix(".md"), table(cells))


def table(cells: dict[str, Cell]) -> str:
    """Return what each search named first, then the recall of each, then the verdicts."""
    lines = [
        "| network | true class | "
        + " | ".join(f"{name} names" for name in SOURCES)
        + " | chosen |",
        "|---" * (len(SOURCES) + 3) + "|",
    ]
    for name, cell in cells.items():
        true = "-" if cell["true_target"] is None else f"{cell['true_target']}"
        each = [_few(cell["named"].get(source, []), cell["true_target"]) for source in SOURCES]
        chosen = _few(named_first(cell["named"]), cell["true_target"])
        lines.append(f"| {name} | {true} | {' | '.join(each)} | {chosen} |")
    attacked = [cell for cell in cells.values() if cell["true_target"] is not None]
    for words, most in (("first", 1), (f"among {MOST_NAMED}", MOST_NAMED)):
        counts = [
            sum(one["true_target"] in one["named"].get(source, [])[:most] for one in attacked)
            for source in SOURCES
        ]
        chosen = sum(one["true_target"] in named_first(one["named"])[:most] for one in attacked)
        row = " | ".join(f"{count} of {len(attacked)}" for count in counts)
        lines.append(f"| **true class {words}** | | {row} | {chosen} of {len(attacked)} |")
    return "\n".join(lines + _verdict_rows(cells))


def _few(named: Sequence[int], true: int | None) -> str:
    return ", ".join(f"**{one}**" if one == true else f"{one}" for one in named) or "none"


def _verdict_rows(cells: dict[str, Cell]) -> list[str]:
    rows = [
        f"| {name} | {cell['true_target']} | {words}: {one['searched']} classes | "
        + " | ".join(
            f"{', '.join(map(str, one['searches'][family]['suspected'])) or 'none'}"
            for family in JUDGED
        )
        + f" | {one['processor_s']:.0f} |"
        for name, cell in cells.items()
        for words, one in cell.get("verdicts", {}).items()
    ]
    head = [
        "",
        "| network | true class | gradients search | "
        + " | ".join(f"{name} suspects" for name in JUDGED)
        + " | processor s |",
        "|---" * (len(JUDGED) + 4) + "|",
    ]
    return head + rows if rows else []


if __name__ == "__main__":
    main()
