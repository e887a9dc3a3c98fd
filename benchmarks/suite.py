"""Every attack against every defence: ``python -m benchmarks.suite smoke``.

A cell is one defence on one attacked network. Networks and cells are written as they are done
(under ``.bench/suite``), so an interrupted suite goes on with the next cell, and a training with
its next epoch. ``results/NAME.json`` holds the cells that are there; `tables.py` renders it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.attacks.base import Attack
from benchmarks.cells import (
    Cell,
    attack_folder,
    finished_cells,
    keep_identity,
    write_record,
    write_whole,
)
from benchmarks.datasets import read_dataset
from benchmarks.defences.table import every_defence
from benchmarks.environment import code_version
from benchmarks.images import PACK_FOLDER, LabelledImages
from benchmarks.metrics import accuracy, attack_success_rate, robust_accuracy
from benchmarks.pictures import PICTURED, attack_picture
from benchmarks.speed import inference_ms
from benchmarks.suites import SUITES, Suite
from benchmarks.training import train
from edgeclean.cost import count_macs, count_params
from edgeclean.loading.architectures import build_architecture
from edgeclean.pixels import Normalize, pixel_network
from edgeclean.states import LoadedNetwork, Network, settings_as_json

Report = Callable[[str], None]
BENCH_FOLDER = Path(__file__).parents[1] / ".bench" / "suite"
CPU = torch.device("cpu")


class SuiteRun:
    """One suite on its data, with the folder that its networks and cells are kept in."""

    def __init__(
        self,
        suite: Suite,
        train_set: LabelledImages,
        test_set: LabelledImages,
        folder: Path,
        *,
        report: Report = lambda line: None,
        device: torch.device = CPU,
    ) -> None:
        self._suite, self._train, self._test = suite, train_set, test_set
        self._folder, self._report, self._device = folder, report, device
        self._defences = every_defence(suite.settings)
        self._code = code_version()

    def run(self) -> list[Cell]:
        """Run the cells that the folder does not hold yet; all of them, in the table's order."""
        keep_identity(self._suite, self._folder)
        for seed in self._suite.seeds:
            for attack in self._suite.attacks:
                self._against_all(attack, seed)
        return finished_cells(self._suite, self._folder)

    def _against_all(self, name: str, seed: int) -> None:
        """The missing cells of one attacked network, and the picture of its trigger."""
        folder = attack_folder(self._folder, self._suite, name, seed)
        missing = [d for d in self._suite.defences if not (folder / f"{d}.json").exists()]
        if not missing:
            return
        attack, network = self._attacked(name, seed)
        if name != "clean":
            attack_picture(attack, self._test.first(PICTURED)).save(folder / "picture.png")
        for defence in missing:
            cell = self._cell(attack, network, defence, seed)
            write_whole(folder / f"{defence}.json", json.dumps(cell, indent=1))
            self._report(f"{name} x {defence}, seed {seed}: {cell['seconds']} s")

    def _attacked(self, name: str, seed: int) -> tuple[Attack, Network]:
        """The attack and the network that it made, out of the folder; trained if not there."""
        spec = self._suite.spec
        path = attack_folder(self._folder, self._suite, name, seed) / "network.safetensors"
        attack = self._suite.attacks[name](spec.classes, spec.input_shape[1:])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build_architecture(spec.architecture, spec, ())
        parts = nn.ModuleDict({"network": module, **attack.networks()})
        if not path.exists():
            self._train_network(attack, module, seed, path.parent / "training")
            tensors = {key: t.cpu().contiguous() for key, t in parts.state_dict().items()}
            save_file(tensors, path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
        # Read again, so that a network just trained and one found give the same cells.
        parts.load_state_dict(load_file(path))
        module.to(self._device).to(memory_format=torch.contiguous_format).eval()
        source = f"{self._suite.name}/{name}/{seed}"
        return attack, LoadedNetwork(module=module, spec=spec, source_sha256=source)

    def _train_network(self, attack: Attack, module: nn.Module, seed: int, folder: Path) -> None:
        """Train in place, with the state of the last epoch in the folder."""
        spec = self._suite.spec
        folder.mkdir(parents=True, exist_ok=True)
        if attack.needs_clean_network:
            _, clean = self._attacked("clean", seed)
            attack.study(pixel_network(clean).to(CPU))
        train(
            nn.Sequential(Normalize(spec.mean, spec.std), module),
            self._train,
            attack,
            replace(self._suite.training, seed=seed),
            device=self._device,
            resume_from=folder,
            report=lambda line: self._report(f"{attack.name}, seed {seed}: {line}"),
        )

    def _cell(self, attack: Attack, network: Network, defence: str, seed: int) -> Cell:
        """Defend a copy of the network, and measure it."""
        entry, suite = self._defences[defence], self._suite
        clean = self._train.sample(suite.clean_images if entry.images != "none" else 0, seed)
        started, processor = time.perf_counter(), time.process_time()
        defended = entry.defend(network, clean, seed)
        cell: Cell = {
            "data_set": suite.data_set,
            "attack": attack.name,
            "defence": defence,
            "given": entry.images,
            "settings": {type(s).__name__: settings_as_json(s) for s in entry.settings},
            "seed": seed,
            "code": self._code,
            "seconds": round(time.perf_counter() - started, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
            "params": count_params(defended.module),
            "macs": count_macs(defended.module, suite.spec.input_shape),
            "macs_before": count_macs(network.module, suite.spec.input_shape),
        }
        function = pixel_network(defended).to(self._device).eval()
        cell["acc"] = accuracy(function, self._test).as_json()
        if attack.name != "clean":
            for key, rate in (("asr", attack_success_rate), ("ra", robust_accuracy)):
                cell[key] = rate(function, self._test, attack.stamp, attack.relabel).as_json()
        if suite.timed_runs:
            cell["ms_batch_100"] = inference_ms(function, self._test, runs=suite.timed_runs)
        return cell


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every attack against every defence.")
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--attack", action="append", help="only this one; may be repeated")
    parser.add_argument("--data", type=Path, default=PACK_FOLDER, help="packs or archives")
    parser.add_argument("--folder", type=Path, default=BENCH_FOLDER, help="where cells are kept")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what is there")
    options = parser.parse_args()
    for suite in SUITES[options.suite] if not options.collect else ():
        sets = read_dataset(
            suite.data_set,
            options.data,
            train_images=suite.train_images,
            test_images=suite.test_images,
        )
        chosen = options.attack or list(suite.attacks)
        SuiteRun(
            replace(suite, attacks={name: suite.attacks[name] for name in chosen}),
            *sets,
            options.folder,
            report=lambda line: print(line, flush=True),
            device=torch.device(options.device),
        ).run()
    write_record(options.suite, options.folder)


if __name__ == "__main__":
    main()
