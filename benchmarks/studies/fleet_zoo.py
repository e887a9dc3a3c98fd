"""The published networks as a fleet: ``python -m benchmarks.studies.fleet_zoo``.

A catalogue of every network of the zoo for two targets at two ratios goes through `edgeclean fleet`
on this machine's processes and on a Ray that the command starts here, each with an empty cache. A
cell of some networks is also made alone: `edgeclean compress` with the same options and no cache,
as a shell loop would. What the loop would take for all cells is not measured but multiplied: each
cell alone does what its network's task and its own did in the fleet of processes, and that sum is
scaled by how much longer the measured ones took than theirs.

Each part joins ``results/fleet.json`` as it is done; an interrupted run goes on with those that are
missing, and ``--again`` starts over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.rendering.fleet_table import write_fleet_table
from benchmarks.studies.published import CODE_FOLDER, RESULTS, ZOO_FOLDER, published_networks
from benchmarks.suite.cells import write_whole

ENGINES = ("local", "ray")
TARGETS, RATIOS = ("cpu", "orin-nano"), (2.0, 3.0)
ALONE = ("resnet20-clean", "smallvgg-badnets")  # one cell of each
BOUND = ("model.onnx", "manifest.json")
Part = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is made of what.

    Attributes:
        networks: checkpoint and model file by name.
        targets: the names of the targets.
        ratios: the ratios of MACs.
        options: those of every cell, by their names in a catalogue: strings and whole numbers.
        jobs: how many tasks work side by side.
        engines: what the fleet runs on.
    """

    networks: Mapping[str, tuple[Path, Path]]
    targets: Sequence[str]
    ratios: Sequence[float]
    options: Mapping[str, str | int]
    jobs: int = 2
    engines: Sequence[str] = ENGINES

    def as_json(self) -> dict[str, Any]:
        """Return all of it, without paths: parts of one study have this in common."""
        return {
            "networks": list(self.networks),
            "targets": list(self.targets),
            "ratios": list(self.ratios),
            "options": dict(self.options),
            "jobs": self.jobs,
        }

    def catalogue(self) -> str:
        """Return the catalogue, which may lie anywhere."""
        lines = ["[defaults]", *(f"{name} = {json.dumps(one)}" for name, one in self._options())]
        for target in self.targets:
            lines += ["[[targets]]", f'target = "{target}"']
        for ratio in self.ratios:
            lines += ["[[goals]]", f"ratio = {ratio}"]
        for name, (checkpoint, model) in self.networks.items():
            lines += ["[[networks]]", f'name = "{name}"']
            lines += [f"checkpoint = {json.dumps(str(checkpoint.resolve()))}"]
            lines += [f"model = {json.dumps(str(model.resolve()))}"]
        return "\n".join(lines) + "\n"

    def first_cell(self, network: str) -> str:
        """Return the name of the network's first cell."""
        return f"{network}/{self.targets[0]}/ratio-{self.ratios[0]:g}"

    def words(self, network: str) -> list[str]:
        """Return the words of `edgeclean compress` for the network's first cell."""
        checkpoint, model = self.networks[network]
        words = [str(checkpoint), "--model", str(model), "--target", self.targets[0]]
        words += ["--ratio", str(self.ratios[0]), "--no-cache"]
        for name, value in self._options():
            words += [f"--{name}", str(value)]
        return words

    def _options(self) -> list[tuple[str, str | int]]:
        return list({"threads": 1, **self.options}.items())


def run_engine(asked: Asked, engine: str) -> Part:
    """Run the whole catalogue on an engine, with an empty cache, and return what it took."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "catalogue.toml").write_text(asked.catalogue(), encoding="utf-8")
        words = ["fleet", str(folder / "catalogue.toml"), "--engine", engine]
        words += ["--jobs", str(asked.jobs)]
        seconds = _run([*words, "--cache", str(folder / "cache")], folder / "out")
        document = json.loads((folder / "out" / "fleet.json").read_text("utf-8"))
        networks = {one["name"]: one for one in document["networks"]}
        return {
            "wall_s": seconds,
            "counts": document["counts"],
            "scans": sum(_scanned(one) for one in (*networks.values(), *document["cells"])),
            "cells": {
                one["name"]: {
                    "state": one["state"],
                    "error": one["error"],
                    "seconds": one["seconds"],
                    "network_seconds": networks[one["network"]]["seconds"],
                    "sha256": _hashes(folder / "out" / "bundles" / one["name"]),
                }
                for one in document["cells"]
            },
            "environment": environment(),
        }


def run_alone(asked: Asked, network: str) -> Part:
    """Make the first cell of a network alone, and return what it took."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        seconds = _run(["compress", *asked.words(network)], out)
        return {
            "cell": asked.first_cell(network),
            "wall_s": seconds,
            "sha256": _hashes(out),
            "environment": environment(),
        }


def measure(
    asked: Asked, alone: Sequence[str], known: Part | None, keep: Callable[[Part], None]
) -> Part:
    """Measure what is missing, and keep each part as it is done.

    Args:
        asked: the catalogue.
        alone: the networks of which a cell is made alone as well.
        known: what an earlier run kept; one of another catalogue does not count.
        keep: writes all parts that there are.
    """
    if known is None or known["asked"] != asked.as_json():
        known = {"asked": asked.as_json(), "engines": {}, "alone": []}
    for name in alone:
        if asked.first_cell(name) not in {one["cell"] for one in known["alone"]}:
            known["alone"].append(run_alone(asked, name))
            keep(known)
    for engine in asked.engines:
        if engine not in known["engines"]:
            known["engines"][engine] = run_engine(asked, engine)
            keep(known)
    return known


def main() -> None:
    """Measure, and write the file and its table."""
    parser = argparse.ArgumentParser(description="The published networks as a fleet.")
    parser.add_argument("--zoo", type=Path, default=ZOO_FOLDER)
    parser.add_argument("--network", nargs="+", help="only these")
    parser.add_argument("--target", nargs="+", default=list(TARGETS))
    parser.add_argument("--ratio", nargs="+", type=float, default=list(RATIOS))
    parser.add_argument("--jobs", type=int, default=2, help="tasks side by side")
    parser.add_argument("--alone", nargs="*", default=list(ALONE), help="networks made alone too")
    parser.add_argument("--again", action="store_true", help="also what is there already")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    published = published_networks(given.zoo)
    asked = Asked(
        networks={
            name: (published[name].path, CODE_FOLDER / f"{name}.toml")
            for name in given.network or published
        },
        targets=given.target,
        ratios=given.ratio,
        options={"effort": "quick", "seed": 0},
        jobs=given.jobs,
    )
    path = given.results / "fleet.json"
    whole: Part = json.loads(path.read_text()) if path.exists() else {}

    def keep(zoo: Part) -> None:
        whole["zoo"] = {"command": _command(given), **zoo}
        write_whole(path, json.dumps(whole, indent=1))
        write_fleet_table(given.results)

    known = None if given.again else whole.get("zoo")
    keep(measure(asked, given.alone, known, keep))


def _command(given: argparse.Namespace) -> str:
    words = ["python -m benchmarks.studies.fleet_zoo"]
    words += ["--network", *given.network] if given.network else []
    words += ["--target", *given.target, "--ratio", *(f"{one:g}" for one in given.ratio)]
    return " ".join([*words, "--jobs", str(given.jobs), "--alone", *given.alone])


def _run(words: Sequence[str], out: Path) -> float:
    """Run a command of edgeclean; cells that failed are told by the document, not by its end."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "edgeclean", *words, "-o", str(out)]
    done = subprocess.run(command, check=False)  # noqa: S603 - our own words
    seconds = round(time.perf_counter() - start, 1)
    if not any((out / name).exists() for name in ("fleet.json", *BOUND)):
        raise RuntimeError(f"edgeclean {words[0]} ended with {done.returncode} and made nothing")
    return seconds


def _scanned(row: Mapping[str, Any]) -> bool:
    """Whether a task searched for triggers itself; all but these take the scan up."""
    return row["state"] == "done" and "scan" not in row["taken_up"]


def _hashes(bundle: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((bundle / name).read_bytes()).hexdigest()
        for name in BOUND
        if (bundle / name).exists()
    }


if __name__ == "__main__":
    main()
