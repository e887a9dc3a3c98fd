"""Run every attack against every defence: ``python -m benchmarks.suite smoke``.

A cell is one defence on one attacked network; a column is all cells of one network, a file in
``results/`` that grows by a cell at a time. Networks are kept under ``.bench/suite``. A suite that
was interrupted goes on with the next cell, and a training with its next epoch; with ``--minutes``
it stops by itself after the cell or epoch in which they are over.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.data.datasets import read_dataset
from benchmarks.data.images import PACK_FOLDER
from benchmarks.rendering.tables import RESULTS
from benchmarks.suite.cells import write_whole
from benchmarks.suite.columns import write_tables
from benchmarks.suite.suite_run import BENCH_FOLDER, SuiteRun
from benchmarks.suite.suites import SUITES, Suite

WITH_CLEAN = ("clean", "trojan")
OUT_OF_TIME = 75  # exit code: call again to go on


class OutOfTimeError(Exception):
    """The minutes that the suite was given are over."""


def main() -> int:
    options = parsed(sys.argv[1:])
    started = time.monotonic()
    if options.threads:
        torch.set_num_threads(options.threads)
    whole = options.results / options.suite / "whole.json"
    begun = options.fresh and not options.attack and not options.defence
    if begun:
        whole.unlink(missing_ok=True)
    status = 0 if options.collect else _run_all(options)
    if begun and not status:
        minutes = round((time.monotonic() - started) / 60, 1)
        write_whole(whole, json.dumps({"minutes": minutes, "jobs": options.jobs}))
    write_tables(options.suite, options.results)
    return status


def columns_apart(attacks: Sequence[str], jobs: int) -> list[list[str]]:
    """Share the columns out to jobs; those that need the clean network stay with it."""
    shares: list[list[str]] = [[] for _ in range(jobs)]
    for name in sorted(attacks, key=lambda name: name not in WITH_CLEAN):  # they come first
        share = shares[0] if name in WITH_CLEAN else min(shares, key=len)
        share.append(name)
    return [share for share in shares if share]


def _run_all(options: argparse.Namespace) -> int:
    """Run the suite here, or share its columns out to ``--jobs`` processes."""
    if options.jobs > 1:
        attacks = options.attack or list(SUITES[options.suite][0].attacks)
        running = [
            subprocess.Popen([sys.executable, "-m", "benchmarks.suite", *words_of(options, share)])  # noqa: S603 - this very command
            for share in columns_apart(attacks, options.jobs)
        ]
        return max(abs(process.wait()) for process in running)
    try:
        for suite in SUITES[options.suite]:
            _run(_of_seeds(suite, options.seed), options)
    except OutOfTimeError as stop:
        print(stop, file=sys.stderr)
        return OUT_OF_TIME
    return 0


def _of_seeds(suite: Suite, chosen: Sequence[int] | None) -> Suite:
    """Return the suite with these of its seeds alone; the tables show no others."""
    for seed in chosen or ():
        if seed not in suite.seeds:
            has = ", ".join(map(str, suite.seeds))
            raise SystemExit(f"{suite.name} has no seed {seed}; it has {has}")
    return replace(suite, seeds=tuple(chosen or suite.seeds))


def words_of(options: argparse.Namespace, attacks: Sequence[str]) -> list[str]:
    """Return the command line of one process with one thread and these columns."""
    words = [options.suite, "--threads", "1", "--minutes", str(options.minutes)]
    for name in ("data", "folder", "results", "device"):
        words += [f"--{name}", str(getattr(options, name))]
    repeated = {"attack": attacks, "defence": options.defence or (), "seed": options.seed or ()}
    for name, values in repeated.items():
        words += [word for value in values for word in (f"--{name}", str(value))]
    return words + ["--fresh"] * options.fresh


def _run(suite: Suite, options: argparse.Namespace) -> None:
    sets = read_dataset(
        suite.data_set,
        options.data,
        train_images=suite.train_images,
        test_images=suite.test_images,
    )
    columns = list(options.attack or suite.attacks)
    rows = tuple(options.defence or suite.defences)
    if options.fresh:
        _forget(suite, columns, options.folder, options.results)
    SuiteRun(
        replace(suite, defences=rows),
        *sets,
        options.folder,
        options.results,
        report=reporter(options.minutes),
        device=torch.device(options.device),
    ).run(columns)


def _forget(suite: Suite, attacks: list[str], *roots: Path) -> None:
    """Remove the networks and the columns of these attacks."""
    for root in roots:
        for seed in suite.seeds:
            for attack in attacks:
                path = root / suite.name / f"seed-{seed}" / attack
                shutil.rmtree(path, ignore_errors=True)
                path.with_suffix(".json").unlink(missing_ok=True)


def reporter(minutes: float) -> Callable[[str], None]:
    """Return a function that prints lines, and ends the run after ``minutes`` (0 for never)."""
    started = time.monotonic()

    def report(line: str) -> None:
        print(line, flush=True)
        if minutes and time.monotonic() - started > 60 * minutes:
            raise OutOfTimeError(f"{minutes:g} minutes are over; run the same command to go on")

    return report


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line's options."""
    parser = argparse.ArgumentParser(description="Run every attack against every defence.")
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--attack", action="append", help="only this column; may be repeated")
    parser.add_argument("--defence", action="append", help="only this row; may be repeated")
    parser.add_argument("--seed", type=int, action="append", help="of the suite's; may be repeated")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: never")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--threads", type=int, default=0, help="of this process; 0: torch's choice")
    parser.add_argument("--fresh", action="store_true", help="forget what was run before")
    parser.add_argument("--data", type=Path, default=PACK_FOLDER, help="packs or archives")
    parser.add_argument("--folder", type=Path, default=BENCH_FOLDER, help="keeps the networks")
    parser.add_argument("--results", type=Path, default=RESULTS, help="keeps columns and tables")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--collect", action="store_true", help="run nothing, write the tables")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
