"""Spend a GPU's minutes, the most telling first: ``python -m benchmarks.studies.gpu``.

First the suite ``table2``, for each seed edgeclean at 2x, 3x and 4x against every attack, then CLP,
ANP and Clean & Compact; then ``table4``, traffic signs before CIFAR-100; then the latencies of
`benchmarks.studies.gpu_latency`. Each epoch, cell and latency is kept as it is done, and a later
call goes on with what is missing; after ``--minutes`` it stops by itself, with exit code 75. It
downloads nothing. What is lacking (a device, a runtime, a data set, the extra ``bench``) is said in
a line, and the rest goes on; exit code 1 says that something was left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.data.datasets import read_dataset
from benchmarks.data.images import PACK_FOLDER
from benchmarks.rendering.tables import RESULTS
from benchmarks.studies import gpu_latency
from benchmarks.studies.gpu_latency import LatencyPlan
from benchmarks.suite.columns import write_tables
from benchmarks.suite.commands import OUT_OF_TIME, OutOfTimeError, reporter
from benchmarks.suite.suite_run import BENCH_FOLDER, Report, SuiteRun
from benchmarks.suite.suites import SUITES, Suite, at_ratios
from edgeclean.errors import EdgecleanError, ToolchainError

PARTS = ("table2", "table4", "latency")
ROUNDS = {
    "table2": (
        ("none", *at_ratios("edgeclean")),
        at_ratios("clp+pruning"),
        at_ratios("anp+pruning"),
        at_ratios("deck"),
    )
}
# What a machine or a checkout lacks raises one of these; anything else is a mistake in the code.
LACKING = (EdgecleanError, ImportError, OSError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRun:
    """One call of the command.

    Attributes:
        suites: what ``table2`` and ``table4`` are.
        latency: the latencies to measure.
        data: folder of the packs.
        folder: keeps the networks, and the latencies.
        results: keeps the columns and the tables.
        device: the device of everything, cuda or cpu.
        report: called with a line after each step that was kept; it ends the call when time is up.
        left_out: what was lacking, each a line.
    """

    suites: Mapping[str, tuple[Suite, ...]]
    latency: LatencyPlan
    data: Path
    folder: Path
    results: Path
    device: str
    report: Report
    left_out: list[str] = field(default_factory=list)

    def table(self, name: str) -> None:
        """Run the cells of a table that are missing, and write it."""
        if self.device == "cuda" and not torch.cuda.is_available():
            self._lacks(f"{name} is left out: PyTorch sees no CUDA device here")
            return
        try:
            for part in self.suites[name]:
                self._part(name, part)
        finally:
            write_tables(name, self.results, self.suites)

    def latencies(self) -> None:
        """Measure the latencies that are missing, and write their table after each."""
        missing = gpu_latency.missing_runtimes(self.device)
        for runtime, what in missing.items():
            self._lacks(f"latencies in {runtime} are left out: {what}")
        folder = self.folder / gpu_latency.NAME
        for key in self.latency.cells():
            where = " ".join(map(str, key))
            try:
                if key[1] in missing or not gpu_latency.measure(
                    key, self.latency, self.device, folder
                ):
                    continue
            except ToolchainError as what:
                missing[key[1]] = str(what)
                self._lacks(f"latencies in {key[1]} are left out: {_line(what)}")
                continue
            except LACKING as what:
                self._lacks(f"latency of {where} is left out: {_line(what)}")
                continue
            gpu_latency.write_table(self.latency, self.results, folder, self.device)
            self.report(f"latency of {where}: done")

    def _part(self, name: str, part: Suite) -> None:
        try:
            sets = read_dataset(
                part.data_set,
                self.data,
                train_images=part.train_images,
                test_images=part.test_images,
            )
        except LACKING as what:
            self._lacks(f"{part.name} is left out: {_line(what)}")
            return
        for suite, attack in steps_of(part, ROUNDS.get(name)):
            run = SuiteRun(
                suite,
                *sets,
                self.folder / "suite",
                self.results,
                report=self.report,
                device=torch.device(self.device),
            )
            try:
                run.run([attack])
            except LACKING as what:
                where = f"{part.name}, {attack}, seed {suite.seeds[0]}"
                self._lacks(f"{where}, {suite.defences[0]} to {suite.defences[-1]}: {_line(what)}")

    def _lacks(self, line: str) -> None:
        print(line, flush=True)
        self.left_out.append(line)


def steps_of(
    part: Suite, rounds: Sequence[tuple[str, ...]] | None = None
) -> Iterator[tuple[Suite, str]]:
    """Yield what is run together, in order: the suite with some rows and one seed, and an attack.

    Args:
        part: the suite.
        rounds: rows, those of a round for every attack before those of the next; None for all.
    """
    for seed in part.seeds:
        for asked in rounds or (part.defences,):
            rows = tuple(row for row in asked if row in part.defences)
            for attack in part.attacks if rows else ():
                yield replace(part, seeds=(seed,), defences=rows), attack


def main(
    words: Sequence[str] | None = None,
    suites: Mapping[str, tuple[Suite, ...]] = SUITES,
    latency: LatencyPlan | None = None,
) -> int:
    """Run what is missing and write the tables; return the exit code."""
    options = _parsed(words)
    run = GpuRun(
        suites=suites,
        latency=latency or LatencyPlan(),
        data=options.data,
        folder=options.folder,
        results=options.results or RESULTS,
        device=options.device,
        report=reporter(options.minutes),
    )
    try:
        for part in options.part or PARTS:
            if part == "latency":
                run.latencies()
            else:
                run.table(part)
    except OutOfTimeError as stop:
        print(stop)
        return OUT_OF_TIME
    return int(bool(run.left_out))


def _parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: never")
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated; or all")
    parser.add_argument("--data", type=Path, default=PACK_FOLDER, help="packs or archives")
    parser.add_argument("--folder", type=Path, default=BENCH_FOLDER.parent, help="keeps networks")
    parser.add_argument("--results", type=Path, help="keeps columns and tables")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(words)
    if options.device == "cpu" and options.results is None:
        parser.error("--device cpu only tries the command out; give --results, a folder of its own")
    return options


def _line(problem: BaseException) -> str:
    return str(problem).strip().partition("\n")[0] or type(problem).__name__


if __name__ == "__main__":
    raise SystemExit(main())
