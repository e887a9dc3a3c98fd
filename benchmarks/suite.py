"""Every attack against every defence: ``python -m benchmarks.suite smoke``.

One cell is one trained attack or one defence on it; each is written as it is done (under
`.bench/suite`), so that an interrupted suite goes on with the next cell. The table in ``results/``
is made of the cells alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.attacks.base import Attack
from benchmarks.attacks.table import ATTACKS
from benchmarks.defences.anp import AnpSettings, anp
from benchmarks.defences.base import DefenceEntry
from benchmarks.defences.finetune import FinetuneSettings, finetune_clean
from benchmarks.defences.ibau import IbauSettings, ibau
from benchmarks.defences.nad import NadSettings, nad
from benchmarks.defences.table import DEFENCES, ONE_PERCENT
from benchmarks.environment import environment
from benchmarks.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.metrics import (
    accuracy,
    attack_success_rate,
    defence_effectiveness,
    robust_accuracy,
)
from benchmarks.training import TrainingSettings, train
from edgeclean.loading.architectures import build_architecture
from edgeclean.pixels import Normalize, pixel_network
from edgeclean.states import JsonValue, LoadedNetwork, ModelSpec, Network

Cell = dict[str, JsonValue]
BENCH_FOLDER = Path(__file__).parents[1] / ".bench" / "suite"
RESULTS = Path(__file__).parent / "results"
SPEC = ModelSpec(
    architecture="resnet20",
    input_shape=(3, 32, 32),
    classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What to run.

    Attributes:
        name: of the suite.
        training: of every network; its seed is replaced by each of ``seeds``.
        train_images: a prefix of the training set; clean images are drawn from it too.
        test_images: a prefix of the test set.
        clean_images: how many the defences that need some are given.
        seeds: one whole table each.
        attacks: names of `ATTACKS`.
        defences: by name; `DEFENCES`, or shorter ones.
        spec: the network.
    """

    name: str
    training: TrainingSettings
    train_images: int
    test_images: int
    clean_images: int
    seeds: tuple[int, ...] = (0,)
    attacks: tuple[str, ...] = tuple(ATTACKS)
    defences: dict[str, DefenceEntry] = field(default_factory=lambda: dict(DEFENCES))
    spec: ModelSpec = SPEC


def quick_defences() -> dict[str, DefenceEntry]:
    """The same defences with far fewer steps: they show that all run, not what they can do."""
    tuning = FinetuneSettings(epochs=2)
    short = {
        "anp": lambda n, c, s: anp(n, c, s, AnpSettings(steps=8)),
        "nad": lambda n, c, s: nad(n, c, s, NadSettings(epochs=2, high_epochs=0, teacher=tuning)),
        "i-bau": lambda n, c, s: ibau(n, c, s, IbauSettings(rounds=1)),
        "fine-tuning": lambda n, c, s: finetune_clean(n, c, s, tuning),
    }
    entries = {name: DefenceEntry(defend=run, images=ONE_PERCENT) for name, run in short.items()}
    return {**DEFENCES, **entries}


SUITES: dict[str, Suite] = {
    "smoke": Suite(
        name="smoke",
        training=TrainingSettings(epochs=3, batch=64, peak_rate=0.1),
        train_images=5000,
        test_images=500,
        clean_images=250,
        defences=quick_defences(),
    ),
    "cpu": Suite(
        name="cpu",
        training=TrainingSettings(epochs=15),
        train_images=50_000,
        test_images=10_000,
        clean_images=500,
    ),
}


def run_suite(
    suite: Suite,
    train_set: LabelledImages,
    test_set: LabelledImages,
    folder: Path,
    report: Callable[[str], None] = lambda line: None,
) -> list[Cell]:
    """Run the cells that ``folder`` does not hold yet; all cells, in the order of the table."""
    cells: list[Cell] = []
    for seed in suite.seeds:
        for name in suite.attacks:
            attack, network = _attacked(suite, name, seed, train_set, folder, report)
            for defence in suite.defences:
                path = folder / suite.name / f"{name}-{defence}-{seed}.json"
                if not path.exists():
                    cell = _defend(suite, attack, network, defence, seed, train_set, test_set)
                    _write(path, json.dumps(cell, indent=1))
                cells.append(json.loads(path.read_text()))
                report(f"{name} x {defence}, seed {seed}: {_line(cells[-1])}")
    return with_der(cells)


def with_der(cells: list[Cell]) -> list[Cell]:
    """Each cell with its DER against the undefended network of the same attack and seed."""
    before = {(c["attack"], c["seed"]): c for c in cells if c["defence"] == "none"}
    return [{**c, "der": _der(before.get((c["attack"], c["seed"])), c)} for c in cells]


def markdown(cells: list[Cell]) -> str:
    """The cells as a table, one row each."""
    lines = [
        "| attack | defence | data | seed | ACC | ASR | RA | DER |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        rates = [_percent(cell, key) for key in ("acc", "asr", "ra")]
        der = "-" if cell.get("der") is None else f"{100 * cell['der']:.1f}"
        head = f"| {cell['attack']} | {cell['defence']} | {cell['data']} | {cell['seed']} "
        lines.append(f"{head}| {' | '.join(rates)} | {der} |")
    return "\n".join(lines) + "\n"


def _attacked(
    suite: Suite,
    name: str,
    seed: int,
    train_set: LabelledImages,
    folder: Path,
    report: Callable[[str], None],
) -> tuple[Attack, Network]:
    """The attack and the network it trained, from the folder where they are there."""
    spec = suite.spec
    attack = ATTACKS[name](spec.classes, (spec.input_shape[1], spec.input_shape[2]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_architecture(spec.architecture, spec, ())
    path = folder / suite.name / f"{name}-{seed}.safetensors"
    parts = nn.ModuleDict({"network": module, **attack.networks()})
    if path.exists():
        parts.load_state_dict(load_file(path))
    else:
        settings = TrainingSettings(**{**asdict(suite.training), "seed": seed})
        function = nn.Sequential(Normalize(spec.mean, spec.std), module)
        resume = folder / suite.name / f"{name}-{seed}"
        train(function, train_set, attack, settings, resume_from=resume, report=report)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in parts.state_dict().items()}, partial)
        partial.replace(path)
    return attack, LoadedNetwork(module=module.eval(), spec=spec, source_sha256=f"{name}-{seed}")


def _defend(  # noqa: PLR0913 - one cell
    suite: Suite,
    attack: Attack,
    network: Network,
    defence: str,
    seed: int,
    train_set: LabelledImages,
    test_set: LabelledImages,
) -> Cell:
    entry = suite.defences[defence]
    clean = train_set.sample(suite.clean_images if entry.images != "none" else 0, seed)
    started = time.perf_counter()
    function = pixel_network(entry.defend(network, clean, seed))
    seconds = time.perf_counter() - started
    cell: Cell = {"attack": attack.name, "defence": defence, "data": entry.images, "seed": seed}
    cell |= {"seconds": round(seconds, 1), "acc": accuracy(function, test_set).as_json()}
    if attack.name != "clean":
        for key, rate in (("asr", attack_success_rate), ("ra", robust_accuracy)):
            cell[key] = rate(function, test_set, attack.stamp, attack.relabel).as_json()
    return cell


def _der(before: Cell | None, after: Cell) -> float | None:
    if before is None or "asr" not in after:
        return None
    shares = [cell[key]["percent"] / 100 for cell in (before, after) for key in ("acc", "asr")]
    return round(defence_effectiveness(*shares), 4)


def _percent(cell: Cell, key: str) -> str:
    return f"{cell[key]['percent']:.1f}" if key in cell else "-"


def _line(cell: Cell) -> str:
    return f"ACC {_percent(cell, 'acc')} ASR {_percent(cell, 'asr')} RA {_percent(cell, 'ra')}"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every attack against every defence.")
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--packs", type=Path, default=PACK_FOLDER)
    parser.add_argument("--folder", type=Path, default=BENCH_FOLDER, help="where cells are kept")
    options = parser.parse_args()
    suite = SUITES[options.suite]
    train_set = read_pack(options.packs / "cifar10-train.npz", suite.train_images)
    test_set = read_pack(options.packs / "cifar10-test.npz", suite.test_images)
    cells = run_suite(
        suite, train_set, test_set, options.folder, lambda line: print(line, flush=True)
    )
    record = {
        "command": f"python -m benchmarks.suite {suite.name}",
        "training": asdict(suite.training),
        "images": {"train": len(train_set), "test": len(test_set), "clean": suite.clean_images},
        "environment": environment(),
        "cells": cells,
    }
    _write(RESULTS / f"suite-{suite.name}.json", json.dumps(record, indent=1))
    _write(RESULTS / f"suite-{suite.name}.md", markdown(cells))


if __name__ == "__main__":
    main()
