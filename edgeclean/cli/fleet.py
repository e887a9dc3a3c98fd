"""`edgeclean fleet`: a catalogue of networks, each for several targets and goals."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.caches import stage_cache
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.progress import LINE_EVERY
from edgeclean.errors import CellsFailedError, UsageError
from edgeclean.files.text import printable, shown
from edgeclean.files.writing import keep_apart
from edgeclean.notes import note_output
from edgeclean.processes import ended_in_order
from edgeclean.progress import Progress, in_words

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.fleet.catalogue import Catalogue
    from edgeclean.fleet.engines import Engine
    from edgeclean.fleet.plan import NetworkPlan
    from edgeclean.fleet.run import Fleet, Moment

ENGINES = ("local", "ray")
MOST_TOLD = 20  # failed cells, each in a line as it fails
MOST_LISTED = 1000  # in the JSON document; fleet.json has all
DRAW_EVERY = 0.2  # seconds, on a terminal

CatalogueFile = Annotated[
    Path, typer.Argument(help="The networks, targets, goals and gates, as TOML.")
]
FleetFolder = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="The fleet's folder: new, empty, or that of an earlier run, which goes on.",
        rich_help_panel=opt.RUN,
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        help="local (processes of this machine) or ray (a cluster, with the extra edgeclean[ray]).",
        rich_help_panel=opt.RUN,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Of a Ray cluster that runs, such as auto or 10.0.0.1:6379; one is started on this "
        "machine, on loopback alone, if not given.",
        rich_help_panel=opt.RUN,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10_000,
        help="How many tasks work side by side; as many as cores and memory bear if not given.",
        rich_help_panel=opt.RUN,
    ),
]


def fleet(  # noqa: PLR0913 - the options are the interface
    catalogue: CatalogueFile,
    output: FleetFolder,
    engine: EngineName = "local",
    address: Address = None,
    jobs: Jobs = None,
    gpu: opt.Gpu = False,
    cache: opt.CacheFolder = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Compress every network of a catalogue for its targets and goals; go on where it stopped."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    _check_engine(engine, address)
    from edgeclean.fleet.catalogue import read_catalogue
    from edgeclean.fleet.plan import plan_networks
    from edgeclean.fleet.run import run_fleet

    read = read_catalogue(catalogue)
    networks = plan_networks(read, gpu=gpu)
    stages = stage_cache(cache, False, reporter.note)
    if stages is None:
        raise UsageError("there is no home folder to keep finished stages in; give --cache FOLDER")
    keep_apart([*_inputs(read, networks), stages.folder], folder=output)
    note_output(output)
    with ended_in_order(), reporter.progress() as progress, _stdout_kept():
        made = run_fleet(
            networks,
            output,
            _engine(engine, address, jobs, networks),
            cache=stages.folder,
            watch=_Told(reporter, progress),
        )
    _answer(reporter, output, made)


def _check_engine(engine: str, address: str | None) -> None:
    if engine not in ENGINES:
        raise UsageError(f"--engine is {shown(engine)}; it must be one of {', '.join(ENGINES)}")
    if address is not None and engine != "ray":
        raise UsageError("--address is that of a Ray cluster; give --engine ray as well")


def _engine(
    name: str, address: str | None, jobs: int | None, networks: tuple[NetworkPlan, ...]
) -> Engine:
    options = [cell.options for one in networks for cell in one.cells]
    threads = max(one.threads for one in options)
    computes = {one.settings.compute for one in options}
    gpu = "cuda" in computes
    if name == "ray":
        from edgeclean.fleet.ray_engine import RayEngine

        return RayEngine(address=address, jobs=jobs, threads=threads, gpu=gpu)
    from edgeclean.fleet.local_engine import LocalEngine, jobs_that_fit
    from edgeclean.networks.compute import require_compute

    for compute in computes:
        require_compute(compute)
    return LocalEngine(jobs or (1 if gpu else jobs_that_fit(threads)))


@contextmanager
def _stdout_kept() -> Iterator[None]:
    """Keep stdout for the answer: Ray prints there what befell its workers."""
    with Path(os.devnull).open("w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        yield


def _inputs(catalogue: Catalogue, networks: tuple[NetworkPlan, ...]) -> list[Path]:
    """Every file that the catalogue names, each once."""
    named: dict[Path | None, None] = {catalogue.path: None}
    for found in catalogue.networks:
        entry = found.entry
        named |= dict.fromkeys(map(catalogue.file, (entry.config, entry.policy)))
    for target in catalogue.targets.values():
        named |= dict.fromkeys(map(catalogue.file, (target.target_file, target.latency_table)))
    for one in networks:
        named |= dict.fromkeys((one.checkpoint, one.model, one.evaluate))
    return [path for path in named if path is not None]


class _Told:
    """Tells of a fleet as it goes: counts, about how long, and each cell that fails."""

    def __init__(self, reporter: Reporter, progress: Progress) -> None:
        self._reporter, self._progress = reporter, progress
        self._every = DRAW_EVERY if reporter.is_terminal else LINE_EVERY
        self._last, self._failed = float("-inf"), 0

    def __call__(self, moment: Moment) -> None:
        """Take one moment; see `edgeclean.fleet.run.Watch`."""
        if moment.failed is not None:
            self._failed += 1
            name, answer = moment.failed
            if self._failed <= MOST_TOLD:
                self._reporter.note(f"{name} failed ({answer.exit_code}): {answer.message}")
            elif self._failed == MOST_TOLD + 1:
                self._reporter.note("further failed cells are in fleet.json")
            return
        counts, now = moment.counts, time.monotonic()
        over = counts.done + counts.failed
        if now - self._last < self._every and over < counts.cells:
            return
        self._last = now
        left = "" if moment.seconds_left is None else f", {in_words(moment.seconds_left)} left"
        line = f"{counts.done} done, {moment.running} running, {counts.failed} failed{left}"
        self._progress(f"Making cells: {line}", over, counts.cells)


def _answer(reporter: Reporter, output: Path, made: Fleet) -> None:
    """What was made; where cells failed, the first one's exit code."""
    page = output / "index.html"
    ordered = [
        (cell.name, made.failures[cell.name])
        for network in made.networks
        for cell in network.cells
        if cell.name in made.failures
    ]
    document: dict[str, Any] = {
        "fleet": str(output),
        "counts": made.document_counts(),
        "seconds": made.seconds,
        "failed": [
            {"cell": name, "kind": one.kind, "exit_code": one.exit_code, "message": one.message}
            for name, one in ordered[:MOST_LISTED]
        ],
    }
    if not ordered:
        reporter.answer(document, _summary(made))
        reporter.note(f"page: {page}")
        return
    if not reporter.as_json:
        reporter.answer(document, _summary(made))
    name, first = ordered[0]
    others = ", and the others are in place" if made.counts.done else ""
    raise CellsFailedError(
        f"{len(ordered)} of {made.counts.cells} cells failed{others}; the first, {name}: "
        f"{first.message}; {page} has the reason of each, and the same command "
        "tries them again",
        exit_code=first.exit_code,
        **document,
    )


def _summary(made: Fleet) -> Table:
    counts = made.counts
    table = plain_table("cells", ">number")
    table.add_row(*cells("done", counts.done))
    if counts.kept:
        table.add_row(*cells("  by an earlier run", counts.kept))
    table.add_row(*cells("failed", counts.failed))
    kinds = Counter((one.exit_code, one.kind) for one in made.failures.values())
    for (code, kind), count in sorted(kinds.items()):
        table.add_row(*cells(f"  {code}: {printable(kind)}", count))
    return table
