"""Every cell of a catalogue with its settings.

All options are read and checked here, before any work: what is wrong with the catalogue refuses the
whole fleet. What is wrong with a stranger's file fails the cells of that network.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclean.compression.latency_table import LatencyTable, read_latency_table
from edgeclean.config import (
    PipelineSettings,
    check_goal,
    configured,
    in_new_words,
    overlay,
    place_of_error,
    read_config,
)
from edgeclean.devices.targets import Target
from edgeclean.errors import EdgecleanError, UsageError
from edgeclean.files.reading import is_folder, is_regular
from edgeclean.files.text import shown
from edgeclean.fleet.catalogue import (
    MOST_CELLS,
    Catalogue,
    FoundNetwork,
    GoalEntry,
    NetworkEntry,
    NetworkOptions,
    TargetEntry,
)
from edgeclean.gates import Policy, read_policy, read_size
from edgeclean.runner import digest
from edgeclean.settings import without_none


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOptions:
    """What is done with a network for one target and one goal; many networks share it.

    Attributes:
        settings: of every stage.
        target: the device.
        policy: the gates.
        table: the file of a latency table; None for none, or one that is measured.
        threads: the processor threads.
        digest: names all of these.
        tuned: names what decides the stages up to the tuned network.
        shared: names what decides the scan and the purification.
    """

    settings: PipelineSettings
    target: Target
    policy: Policy
    table: Path | None
    threads: int
    digest: str
    tuned: str
    shared: str

    @property
    def measures_table(self) -> bool:
        """Whether its ranks are chosen by a table that has to be measured."""
        return self.table is None and self.settings.ranks.needs_table


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """One cell: a network for one target to one goal.

    Attributes:
        name: ``NETWORK/TARGET/GOAL``, which is its place below the bundles' folder.
        target: the name of the target in the catalogue.
        goal: the name of the goal in the catalogue.
        options: what is done.
    """

    name: str
    target: str
    goal: str
    options: CellOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """One network with its cells.

    Attributes:
        name: its name in the catalogue.
        checkpoint: the file or folder.
        model: the model file; None for none.
        named: whether the catalogue names the model file, which may name code to run then.
        evaluate: labelled images; None for none.
        pin: the hash that the catalogue asks for; None for none.
        cells: at least one; all share what decides the scan and the purification.
    """

    name: str
    checkpoint: Path
    model: Path | None
    named: bool
    evaluate: Path | None
    pin: str | None
    cells: tuple[CellPlan, ...]


def plan_networks(catalogue: Catalogue, *, gpu: bool = False) -> tuple[NetworkPlan, ...]:
    """Return every network with its cells and their settings.

    Args:
        catalogue: as it was read.
        gpu: whether the stages run on a CUDA GPU, whatever the settings say.

    Raises:
        UsageError: an option is wrong, or contradicts another; a file that one names is missing;
            there are more than 500,000 cells.
    """
    planned = _Planned(catalogue, gpu=gpu)
    networks = tuple(planned.network(one) for one in catalogue.networks)
    count = sum(len(one.cells) for one in networks)
    if count > MOST_CELLS:
        raise UsageError(f"{catalogue.path}: {count} cells; at most {MOST_CELLS} are taken")
    return networks


class _Planned:
    """What was read and made for earlier networks: a glob's have all options in common."""

    def __init__(self, catalogue: Catalogue, *, gpu: bool) -> None:
        self._catalogue, self._gpu = catalogue, gpu
        self._options: dict[tuple[str, str, str], CellOptions] = {}
        self._configs: dict[Path, dict[str, Any]] = {}
        self._tables: dict[Path, LatencyTable] = {}
        self._there: set[Path] = set()

    def network(self, found: FoundNetwork) -> NetworkPlan:
        """Return a network with all of its cells."""
        entry, place = found.entry, f"{self._catalogue.path}: {found.name}"
        chosen = {
            kind: _chosen(place, kind, names, known)
            for kind, names, known in (
                ("target", entry.targets, self._catalogue.targets),
                ("goal", entry.goals, self._catalogue.goals),
            )
        }
        evaluate = self._catalogue.file(entry.evaluate)
        for option, path in (("model", found.model), ("evaluate", evaluate)):
            self._check_there(place, option, path)
        key = _key(entry)
        cells = tuple(
            CellPlan(
                name=f"{found.name}/{target}/{goal}",
                target=target,
                goal=goal,
                options=self._cell(entry, key, target, goal),
            )
            for target in chosen["target"]
            for goal in chosen["goal"]
        )
        return NetworkPlan(
            name=found.name,
            checkpoint=found.checkpoint,
            model=found.model,
            named=found.named,
            evaluate=evaluate,
            pin=entry.sha256,
            cells=cells,
        )

    def _cell(self, entry: NetworkEntry, key: str, target: str, goal: str) -> CellOptions:
        if (key, target, goal) not in self._options:
            place = f"{self._catalogue.path}: {target}/{goal}"
            targets, goals = self._catalogue.targets[target], self._catalogue.goals[goal]
            try:
                made = self._made(entry, targets, goals)
            except EdgecleanError as error:
                words = str(error).removeprefix("options: ")
                raise type(error)(f"{place}: {words}") from None
            self._options[key, target, goal] = made
        return self._options[key, target, goal]

    def _made(self, entry: NetworkEntry, target: TargetEntry, goal: GoalEntry) -> CellOptions:
        """Build the settings as `edgeclean compress` does of the same options.

        Raises:
            UsageError: see `plan_networks`.
        """
        file = self._catalogue.file
        own = self._config(file(entry.config))
        entries = overlay(own, self._settings(entry, target, goal))
        settings, device = configured(
            in_new_words(entries),
            target_file=file(target.target_file),
            where=place_of_error(file(entry.config), in_new_words(own)),
        )
        table = file(target.latency_table)
        check_goal(settings, device, self._table(table))
        gates = {
            "fail_on_backdoor": entry.fail_on_backdoor,
            "max_accuracy_drop": entry.max_accuracy_drop,
            "max_expected_drop": entry.max_expected_drop,
            "max_size": target.max_size or entry.max_size,
            "min_speedup": target.min_speedup or entry.min_speedup,
        }
        policy = read_policy(file(entry.policy), without_none(gates))
        if policy.max_accuracy_drop is not None and entry.evaluate is None:
            raise UsageError(
                "max-accuracy-drop needs labelled images to measure accuracy on; give evaluate"
            )
        facts = None if table is None else self._tables[table].sha256
        shared, tuned = _digests(settings, entry.threads, facts)
        return CellOptions(
            settings=settings,
            target=device,
            policy=policy,
            table=table,
            threads=entry.threads,
            digest=digest([settings, dataclasses.asdict(device), policy, facts, entry.threads]),
            shared=shared,
            tuned=tuned,
        )

    def _settings(
        self, entry: NetworkEntry, target: TargetEntry, goal: GoalEntry
    ) -> dict[str, Any]:
        """Return the options as settings, as `edgeclean.cli.compress` orders them."""
        size = None if goal.size_budget is None else read_size(goal.size_budget)
        return without_none(
            {
                "seed": entry.seed,
                "compute": "cuda" if self._gpu else None,
                "effort": entry.effort,
                "target": target.target,
                "jetpack": target.jetpack,
                "runtime": {"names": target.runtimes or None},
                "load": {"state_dict": entry.state_dict},
                "purify": {"mode": entry.purify},
                "decompose": {"keep": list(entry.keep) or None},
                "scale": {"tau": entry.tau},
                "export": {"opset": target.opset},
                "latency": {"threads": entry.threads},
                "precision": {"format": target.precision},
                "ranks": {
                    "ratio": goal.ratio,
                    "keep_accuracy": goal.keep_accuracy,
                    "measure": goal.measure,
                    "rank_multiple": goal.rank_multiple,
                    "speedup": goal.speedup,
                    "latency_budget_ms": goal.latency_budget_ms,
                    "size_budget": size,
                },
            }
        )

    def _config(self, path: Path | None) -> dict[str, Any]:
        if path is None:
            return {}
        if path not in self._configs:
            self._configs[path] = read_config(path)
        return self._configs[path]

    def _table(self, path: Path | None) -> LatencyTable | None:
        if path is None:
            return None
        if path not in self._tables:
            self._tables[path] = read_latency_table(path)
        return self._tables[path]

    def _check_there(self, place: str, option: str, path: Path | None) -> None:
        if path is None or path in self._there:
            return
        if not (is_regular(path) or (option == "evaluate" and is_folder(path))):
            raise UsageError(f"{place}: {option} names {path}, which is no file that can be read")
        self._there.add(path)


def _chosen(place: str, kind: str, names: tuple[str, ...], known: Any) -> list[str]:
    """Return the names of an entry, or all; each must be known."""
    for name in names:
        if name not in known:
            raise UsageError(
                f"{place}: there is no {kind} {shown(name)}; there are {', '.join(list(known)[:9])}"
            )
    return list(names or known)


def _key(entry: NetworkEntry) -> str:
    """Name the options of a network, but for those that name it."""
    fields = [one.name for one in dataclasses.fields(NetworkOptions)]
    return json.dumps({name: getattr(entry, name) for name in fields}, sort_keys=True)


def _digests(settings: PipelineSettings, threads: int, table: str | None) -> tuple[str, str]:
    """Return what names the scan and the purification, and what names the tuned network."""
    first = ("seed", "compute", "load", "synthesize", "scan", "purify")
    then = ("decompose", "scale", "ranks", "truncate", "finetune", "forecast")
    shared = digest([threads, *(getattr(settings, name) for name in first)])
    return shared, digest([shared, table, *(getattr(settings, name) for name in then)])
