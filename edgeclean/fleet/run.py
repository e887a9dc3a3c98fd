"""A whole fleet: from a catalogue to a bundle for each cell, a document and a page.

The folder of a fleet::

    fleet.json         every network and cell, with its state
    index.html         the same, to look at
    journal.jsonl      the same as it came, from which the next run goes on
    bundles/NETWORK/TARGET/GOAL/   what `edgeclean compress -o` writes
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclean.environment import versions
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.atomic import hold_folder
from edgeclean.files.writing import Recognise, beginning, check_place, write_file
from edgeclean.fleet.engines import Engine, drive
from edgeclean.fleet.graph import Node, graph, job_of
from edgeclean.fleet.inputs import MOST_BYTES, NetworkFiles, file_sha256, look_at
from edgeclean.fleet.jobs import Done, Failed, Job, Kind
from edgeclean.fleet.journal import JOURNAL, Journal, is_journal
from edgeclean.fleet.page import PAGE_MARK, render_page
from edgeclean.fleet.plan import CellPlan, NetworkPlan
from edgeclean.fleet.rows import BUNDLES, FORMAT, Counts, bundle_of, cell_row, document, network_row
from edgeclean.fleet.scheduler import Schedule
from edgeclean.runner import own_code

DOCUMENT, PAGE = "fleet.json", "index.html"
WRITE_SHARE = 20  # the documents are written again after so many times what writing them took
is_document = beginning(rf'\{{\n "format": "{FORMAT}"'.encode())
is_page = beginning(rb"<!DOCTYPE html>\n(?:<[^<>]*>\n)*" + re.escape(PAGE_MARK).encode())
DOCUMENTS = ((JOURNAL, is_journal), (DOCUMENT, is_document), (PAGE, is_page))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The place that a fleet has come to.

    Attributes:
        counts: of its cells.
        running: how many tasks are in flight.
        seconds_left: the time that the rest will take; None before anything was measured, and at
            the end.
        failed: the name of a cell that has just failed, with its reason; None for none.
    """

    counts: Counts
    running: int
    seconds_left: float | None
    failed: tuple[str, Failed] | None = None


Watch = Callable[[Moment], None]


def run_fleet(
    networks: Sequence[NetworkPlan],
    output: Path,
    engine: Engine,
    *,
    cache: Path,
    tries: int = 3,
    watch: Watch = lambda _moment: None,
) -> Fleet:
    """Make every cell that is not there yet; one that fails does not stop the others.

    Args:
        networks: what `plan_networks` returned.
        output: the fleet's folder: new, empty, or an earlier run's.
        engine: where jobs are done; it is closed at the end, whatever happens.
        cache: the folder of finished stages.
        tries: how often a job is begun whose process is lost.
        watch: told whenever tasks were begun, of every cell that fails, and at the end.

    Returns:
        The fleet as it is at the end.

    Raises:
        UsageError: the folder is somebody else's, or cannot be written.
        OutputInUseError: another run holds it.
    """
    try:
        with hold_folder(output, refuse_foreign, replaced=False) as held:
            held.path.mkdir(exist_ok=True)
            fleet = Fleet(networks, held.path, engine, cache=cache, watch=watch)
            with fleet.kept_up_to_date():
                fleet.look()
                fleet.work(tries)
    finally:
        engine.close()
    return fleet


def refuse_foreign(folder: Path, named: Path) -> None:
    """Refuse a folder that holds anything and is no fleet's.

    Raises:
        UsageError: it is not.
    """
    if not any(_is(folder / name, ours) for name, ours in DOCUMENTS):
        raise UsageError(
            f"{named} holds something, and is no folder of `edgeclean fleet`; name one that does "
            "not exist"
        )


class Fleet:
    """The state of a fleet while it runs, and at its end.

    Attributes:
        networks: the catalogue's.
        failures: the failed cells, by name.
        seconds: wall time so far.
    """

    def __init__(
        self,
        networks: Sequence[NetworkPlan],
        folder: Path,
        engine: Engine,
        *,
        cache: Path,
        watch: Watch,
    ) -> None:
        """Read what earlier runs left; `look` is next."""
        for name, ours in DOCUMENTS:
            check_place(folder / name, ours)  # now, and not after hours
        self.networks = networks
        self.failures: dict[str, Failed] = {}
        self._folder, self._engine, self._cache, self._watch = folder, engine, cache, watch
        self._journal = Journal(folder)
        self._code = hashlib.sha256(f"{own_code()} {sorted(versions().items())}".encode())
        self._files: dict[str, NetworkFiles] = {}
        self._waiting: dict[str, str] = {}
        self._cells = sum(len(one.cells) for one in networks)
        self._kept_cells = self._done = 0
        self._kept: dict[str, tuple[str, ...]] = {}
        self._nodes: dict[str, Node] = {}
        self._schedule = Schedule(())
        self._took: dict[Kind, float] = {"purify": 0.0, "table": 0.0, "cell": 0.0}
        self._ended: Counter[Kind] = Counter()
        self._left: Counter[Kind] = Counter()
        self._start = self._written = time.monotonic()
        self._writing = 0.0

    @property
    def seconds(self) -> float:
        """Wall time since the run began."""
        return round(time.monotonic() - self._start, 3)

    @property
    def counts(self) -> Counts:
        """How many cells are where."""
        return Counts(
            cells=self._cells,
            done=self._done,
            failed=len(self.failures),
            kept=self._kept_cells,
        )

    def document_counts(self) -> dict[str, int]:
        """Return the counts as the document has them."""
        counts = self.counts
        return {
            "cells": counts.cells,
            "done": counts.done,
            "failed": counts.failed,
            "waiting": counts.waiting,
            "kept": counts.kept,
        }

    @contextmanager
    def kept_up_to_date(self) -> Iterator[None]:
        """Write the document and the page at the end, also where the run is interrupted."""
        try:
            yield
        finally:
            self._write()
            self._journal.close()

    def look(self) -> None:
        """Hash what the cells are made from, and find those that are there already."""
        seen: dict[Path, str] = {}
        for network in self.networks:
            for cell in network.cells:
                self._waiting[cell.name] = ""
        for network in self.networks:
            try:
                files = self._files[network.name] = look_at(network, seen)
            except InputRejectedError as error:
                self._refuse(network, error)
                continue
            # Without the network's own row, which was damaged, its task is done again too.
            known = self._journal.row("networks", network.name) is not None
            for cell in network.cells:
                key = self._key(files, cell)
                if known and self._is_made(network, cell, key):
                    del self._waiting[cell.name]
                    self._done += 1
                    self._kept_cells += 1
                else:
                    self._waiting[cell.name] = key

    def work(self, tries: int) -> None:
        """Make the cells that wait."""
        wanted = {
            network.name: [one for one in network.cells if one.name in self._waiting]
            for network in self.networks
            if network.name in self._files
        }
        for node in graph(self.networks, self._files, wanted):
            self._nodes[node.task.name] = node
            self._left[node.kind] += 1
        tasks = (node.task for node in self._nodes.values())
        self._schedule = Schedule(tasks, tries=tries, careful=self._engine.careful)
        drive(self._schedule, self._engine, self._job, self._over, self._tell)
        self._tell()

    def _job(self, name: str) -> Job:
        node = self._nodes[name]
        before = (*node.task.needs, *node.task.after)
        kept = {key: None for one in before for key in self._kept.get(one, ())}
        if node.kind == "purify":  # an earlier run may have got as far
            row = self._journal.row("networks", node.network.name)
            kept |= dict.fromkeys(row["kept"] if row else ())
        job = job_of(
            node,
            self._files[node.network.name],
            cache=self._cache,
            bundles=self._folder / BUNDLES,
        )
        return replace(job, kept=tuple(kept))

    def _over(self, name: str, answer: Done | Failed) -> None:
        """Keep the row of a task that is over, and tell of it."""
        node = self._nodes.pop(name)
        self._left[node.kind] -= 1
        if isinstance(answer, Done):
            self._took[node.kind] += answer.seconds
            self._ended[node.kind] += 1
            self._kept[name] = answer.kept
        failed = None
        if node.kind == "purify":
            row = network_row(node.network, self._files[node.network.name], answer)
            self._journal.write("networks", row)
        elif node.kind == "cell":
            key = self._waiting.pop(node.cell.name)
            self._journal.write("cells", cell_row(node.network, node.cell, key, answer))
            if isinstance(answer, Failed):
                self.failures[node.cell.name] = answer
                failed = node.cell.name, answer
            else:
                self._done += 1
        if time.monotonic() - self._written > max(60.0, WRITE_SHARE * self._writing):
            self._write()
        if failed is not None:
            self._tell(failed)

    def _refuse(self, network: NetworkPlan, error: InputRejectedError) -> None:
        """Let all cells of a network fail whose files cannot be taken."""
        answer = Failed(
            kind=type(error).__name__, message=str(error), exit_code=InputRejectedError.exit_code
        )
        self._journal.write("networks", network_row(network, None, answer))
        for cell in network.cells:
            del self._waiting[cell.name]
            self.failures[cell.name] = answer
            self._journal.write("cells", cell_row(network, cell, "", answer))
            self._tell((cell.name, answer))

    def _tell(self, failed: tuple[str, Failed] | None = None) -> None:
        self._watch(
            Moment(
                counts=self.counts,
                running=len(self._schedule.in_flight),
                seconds_left=self._seconds_left(),
                failed=failed,
            )
        )

    def _seconds_left(self) -> float | None:
        """Estimate the rest by the mean time of each kind of task; None where nothing tells."""
        if not self._nodes:
            return None
        means = {kind: self._took[kind] / count for kind, count in self._ended.items()}
        if not means:
            return None
        unknown = sum(means.values()) / len(means)
        whole = sum(count * means.get(kind, unknown) for kind, count in self._left.items())
        return whole / max(1, min(self._engine.room(), len(self._nodes)))

    def _key(self, files: NetworkFiles, cell: CellPlan) -> str:
        """Name all that decides a cell's bundle on one kind of machine."""
        hashed = self._code.copy()
        hashed.update(f"\0{files.key}\0{cell.options.digest}".encode())
        return hashed.hexdigest()

    def _is_made(self, network: NetworkPlan, cell: CellPlan, key: str) -> bool:
        """Return whether an earlier run made this very cell, and its bundle is in place."""
        row = self._journal.row("cells", cell.name)
        if row is None or row.get("state") != "done" or row.get("key") != key:
            return False
        manifest = bundle_of(self._folder, cell) / "manifest.json"
        if _hash(manifest) != row.get("manifest_sha256"):
            return False
        beside: Mapping[str, str] = row.get("external_sha256") or {}
        folder = network.checkpoint.parent
        return all(_hash(folder / name) == sha256 for name, sha256 in beside.items())

    def _write(self) -> None:
        """Write ``fleet.json`` and ``index.html`` as the fleet is now, each whole or not at all."""
        start = time.monotonic()
        head = {
            "engine": self._engine.name,
            "seconds": self.seconds,
            "counts": self.document_counts(),
        }
        text = "".join(document(self.networks, self._journal, self._waiting, head))
        write_file(self._folder / DOCUMENT, text.encode(), ours=is_document)
        write_file(self._folder / PAGE, render_page(text), ours=is_page)
        self._written = time.monotonic()
        self._writing = self._written - start


def _is(path: Path, ours: Recognise) -> bool:
    try:
        return ours(path)
    except OSError:
        return False


def _hash(path: Path) -> str | None:
    try:
        return file_sha256(path, MOST_BYTES)
    except InputRejectedError:
        return None
