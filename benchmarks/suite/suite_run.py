"""Run a suite: attacked networks are trained, defended and measured, cell by cell."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.attacks.base import Attack
from benchmarks.data.images import LabelledImages
from benchmarks.defences.table import every_defence
from benchmarks.environment import environment
from benchmarks.metrics import accuracy, stamped_rates
from benchmarks.networks.training import train
from benchmarks.rendering.pictures import PICTURED, attack_picture
from benchmarks.rendering.tables import RESULTS
from benchmarks.speed import inference_in_turns
from benchmarks.suite.cells import Cell, write_whole
from benchmarks.suite.columns import (
    Column,
    as_read,
    column_path,
    identity,
    is_current,
    network_identity,
    plain_settings,
    read_column,
)
from benchmarks.suite.kept_networks import KEPT, StoredNetwork, read_network, write_network
from benchmarks.suite.suites import Suite
from edgeclean.load.architectures import build_architecture
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.pixels import Normalize, pixel_network
from edgeclean.networks.state import LoadedNetwork, Network

Report = Callable[[str], None]
BENCH_FOLDER = Path(__file__).parents[2] / ".bench" / "suite"
CPU = torch.device("cpu")


class SuiteRun:
    """A run of one suite on its data.

    Args:
        suite: the suite.
        train_set: training images of the networks, and clean images of the defences.
        test_set: images that are measured on.
        folder: folder of the networks, of the state of a training, and of edgeclean's stages.
        results: folder of the columns and the pictures.
        report: called with one line an epoch and one a cell, after it has been written.
        device: device of trainings and defences.
    """

    def __init__(  # noqa: PLR0913 - two sets, two folders
        self,
        suite: Suite,
        train_set: LabelledImages,
        test_set: LabelledImages,
        folder: Path,
        results: Path = RESULTS,
        *,
        report: Report = lambda line: None,
        device: torch.device = CPU,
    ) -> None:
        self._suite, self._train, self._test = suite, train_set, test_set
        self._folder, self._results, self._report = folder, results, report
        self._device = device
        self._defences = every_defence(suite.settings, folder / suite.name / "stages")
        self._environment = environment()

    def run(self, columns: Sequence[str] | None = None) -> None:
        """Run the cells that the columns lack, or hold with other settings.

        Args:
            columns: attacks of the suite; empty for all. One may need the network of another
                (`Attack.needs_clean_network`), so the suite keeps the rest.
        """
        for seed in self._suite.seeds:
            for attack in columns or self._suite.attacks:
                self._column(attack, seed)

    def _column(self, name: str, seed: int) -> None:
        started = time.perf_counter()
        path = column_path(self._results, self._suite, name, seed)
        column = read_column(path, self._suite)
        with torch.random.fork_rng(devices=[]):  # some attacks draw the weights of networks
            settings = as_read(self._attack(name).facts())
        if column is not None and column["attack_settings"] != settings:
            self._report(
                f"{name}, seed {seed}: the attack has other settings now, so all runs again"
            )
            column = None
        if column is not None and not self._missing(column):
            return
        attack, stored = self._attacked(name, seed)
        if column is None or column["network_sha256"] != stored.weights_sha256:
            if column is not None:
                self._report(f"{name}, seed {seed}: another network, so all of its cells run again")
            column = self._new_column(attack, stored, seed)
        before = column["seconds"]
        for defence in self._missing(column):
            cell = self._cell(attack, stored.network, defence, seed)
            column["cells"][defence] = cell
            column["seconds"] = round(before + time.perf_counter() - started, 1)
            write_whole(path, json.dumps(column, indent=1))
            self._report(f"{name} x {defence}, seed {seed}: {cell['seconds']} s, {_rates(cell)}")

    def _attack(self, name: str) -> Attack:
        """Return a new attack for the suite's images."""
        spec = self._suite.spec
        return self._suite.attacks[name](spec.classes, spec.input_shape[1:])

    def _missing(self, column: Column) -> list[str]:
        held, entries = column["cells"], self._defences
        return [
            name
            for name in self._suite.defences
            if name not in held or not is_current(held[name], entries[name])
        ]

    def _new_column(self, attack: Attack, stored: StoredNetwork, seed: int) -> Column:
        """Return a column without cells, with the picture of its trigger."""
        picture = f"pictures/{self._suite.name}-{attack.name}.png"
        if attack.name != "clean":
            (self._results / picture).parent.mkdir(parents=True, exist_ok=True)
            attack_picture(attack, self._test.first(PICTURED)).save(self._results / picture)
        return {
            "part": identity(self._suite),
            "attack": attack.name,
            "attack_settings": attack.facts(),
            "data_set": self._suite.data_set,
            "seed": seed,
            "network_sha256": stored.weights_sha256,
            "training": stored.training,
            "seconds": 0.0,
            **({} if attack.name == "clean" else {"picture": picture}),
            "cells": {},
        }

    def _attacked(self, name: str, seed: int) -> tuple[Attack, StoredNetwork]:
        """Return the attack and its network, from a folder, or trained where it is not there."""
        within = Path(self._suite.name) / f"seed-{seed}"
        committed = KEPT / within / f"{name}.safetensors"
        path = self._folder / within / name / "network.safetensors"
        if not committed.exists() and not path.exists():
            self._train_network(self._attack(name), seed, path)
        # Read again, so that a network just trained and one found give the same cells.
        attack, stored = read_attacked(
            committed if committed.exists() else path, self._suite, name, seed
        )
        stored.network.module.to(self._device)
        return attack, stored

    def _train_network(self, attack: Attack, seed: int, path: Path) -> None:
        """Train a network into a file, with the state of the last epoch in a folder beside it."""
        spec = self._suite.spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = build_architecture(spec.architecture, spec, ())
        if attack.needs_clean_network:
            _, clean = self._attacked("clean", seed)
            attack.study(pixel_network(clean.network).to(CPU))
        made_with = network_identity(self._suite, seed, attack.facts())
        record = train(
            nn.Sequential(Normalize(spec.mean, spec.std), module),
            self._train,
            attack,
            replace(self._suite.training, seed=seed),
            device=self._device,
            resume_from=path.parent / "training",
            report=lambda line: self._report(f"{attack.name}, seed {seed}: {line}"),
        )
        modules = nn.ModuleDict({"network": module, **attack.networks()})
        training = {"epochs": list(record.epochs), "environment": self._environment}
        write_network(path, modules, made_with, training)

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
            "settings": plain_settings(entry),
            "seed": seed,
            "environment": self._environment,
            "seconds": round(time.perf_counter() - started, 1),
            "processor_seconds": round(time.process_time() - processor, 1),
            "params": count_params(defended.module),
            "macs": count_macs(defended.module, suite.spec.input_shape),
            "macs_before": count_macs(network.module, suite.spec.input_shape),
            "notes": {
                record.stage: record.notes
                for record in defended.history[len(network.history) :]
                if record.notes
            },
        }
        function = pixel_network(defended).to(self._device).eval()
        cell["acc"] = accuracy(function, self._test).as_json()
        if attack.name != "clean":
            asr, ra = stamped_rates(function, self._test, attack.stamp, attack.relabel)
            cell["asr"], cell["ra"] = asr.as_json(), ra.as_json()
        if suite.timed_runs:
            before = pixel_network(network).to(self._device).eval()
            cell |= inference_in_turns(before, function, self._test, runs=suite.timed_runs)
        return cell


def read_attacked(path: Path, suite: Suite, name: str, seed: int) -> tuple[Attack, StoredNetwork]:
    """Read a suite's network from its file, with its attack and what that trained of its own.

    Raises:
        ValueError: the network was made with other settings.
    """
    spec = suite.spec
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
        attack = suite.attacks[name](spec.classes, spec.input_shape[1:])
        module = build_architecture(spec.architecture, spec, ())
    modules = nn.ModuleDict({"network": module, **attack.networks()})
    made_with = network_identity(suite, seed, attack.facts())
    digest, training = read_network(path, modules, made_with)
    network = LoadedNetwork(module=module.eval(), spec=spec, source_sha256=digest)
    return attack, StoredNetwork(network=network, weights_sha256=digest, training=training)


def _rates(cell: Cell) -> str:
    return ", ".join(f"{key} {cell[key]['percent']}" for key in ("acc", "asr") if key in cell)
