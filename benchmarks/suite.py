"""Every attack against every defence: ``python -m benchmarks.suite smoke``.

A cell is one defence on one attacked network; a column is all cells of one network, a file in
``results/`` that grows by a cell at a time. Networks are kept under ``.bench/suite``. A suite that
was interrupted goes on with the next cell, and a training with its next epoch; with ``--minutes``
it stops by itself after the cell or epoch in which they are over.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.columns import write_tables
from benchmarks.datasets import read_dataset
from benchmarks.images import PACK_FOLDER
from benchmarks.suite_run import BENCH_FOLDER, SuiteRun
from benchmarks.suites import SUITES, Suite
from benchmarks.tables import RESULTS

OUT_OF_TIME = 75  # exit code: call again to go on


class OutOfTimeError(Exception):
    """The minutes that the suite was given are over."""


def main() -> int:
    options = _options()
    status = 0
    try:
        for suite in SUITES[options.suite] if not options.collect else ():
            _run(suite, options)
    except OutOfTimeError as stop:
        print(stop, file=sys.stderr)
        status = OUT_OF_TIME
    write_tables(options.suite, options.results)
    return status


def _run(suite: Suite, options: argparse.Namespace) -> None:
    sets = read_dataset(
        suite.data_set,
        options.data,
        train_images=suite.train_images,
        test_images=suite.test_images,
    )
    chosen = {name: suite.attacks[name] for name in options.attack or suite.attacks}
    rows = tuple(options.defence or suite.defences)
    if options.fresh:
        _forget(suite, list(chosen), options.folder, options.results)
    SuiteRun(
        replace(suite, attacks=chosen, defences=rows),
        *sets,
        options.folder,
        options.results,
        report=_reporter(options.minutes),
        device=torch.device(options.device),
    ).run()


def _forget(suite: Suite, attacks: list[str], *roots: Path) -> None:
    """Remove the networks and the columns of these attacks."""
    for root in roots:
        for seed in suite.seeds:
            for attack in attacks:
                path = root / suite.name / f"seed-{seed}" / attack
                shutil.rmtree(path, ignore_errors=True)
                path.with_suffix(".json").unlink(missing_ok=True)


def _reporter(minutes: float) -> Callable[[str], None]:
    """Prints each line, and ends the run after ``minutes`` of them (0 for never)."""
    started = time.monotonic()

    def report(line: str) -> None:
        print(line, flush=True)
        if minutes and time.monotonic() - started > 60 * minutes:
            raise OutOfTimeError(f"{minutes:g} minutes are over; run the same command to go on")

    return report


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run every attack against every defence.")
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--attack", action="append", help="only this column; may be repeated")
    parser.add_argument("--defence", action="append", help="only this row; may be repeated")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: never")
    parser.add_argument("--fresh", action="store_true", help="forget what was run before")
    parser.add_argument("--data", type=Path, default=PACK_FOLDER, help="packs or archives")
    parser.add_argument("--folder", type=Path, default=BENCH_FOLDER, help="keeps the networks")
    parser.add_argument("--results", type=Path, default=RESULTS, help="keeps columns and tables")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--collect", action="store_true", help="run nothing, write the tables")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
