"""How a command speaks: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from edgeclean.cli.supervisor import note_answer
from edgeclean.errors import EdgecleanError
from edgeclean.printable import printable
from edgeclean.progress import Progress as ProgressCallback

ANSWERED: ContextVar[bool] = ContextVar("ANSWERED", default=False)


@dataclass(frozen=True, slots=True)
class Face:
    """One command's way to the user.

    Attributes:
        as_json: stdout is one JSON document.
        quiet: stderr only holds errors, and stdout no tables.
    """

    as_json: bool = False
    quiet: bool = False

    def say(self, message: str) -> None:
        """A line on stderr."""
        if not self.quiet:
            _stderr().print(Text(printable(message)), soft_wrap=True)

    def answer(self, document: dict[str, Any], *tables: Table) -> None:
        """What the command was asked for: as JSON, or else as tables."""
        if self.as_json:
            _write_json(document)
        elif not self.quiet:
            console = Console(highlight=False)
            for table in tables:
                # A title is a sentence: as wide as it is, not as what stands below it.
                title, table.title = table.title, None
                if title is not None:
                    console.print(Text(str(title), style="bold"), soft_wrap=True)
                console.print(table)

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback]:
        """Bars on a terminal; a line for each stage in a log; nothing when quiet."""
        if self.quiet:
            yield _nothing
        elif not _stderr().is_terminal:
            yield _Lines(self)
        else:
            with Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=_stderr(),
            ) as bars:
                yield _Bars(bars)


def show_error(error: EdgecleanError) -> None:
    """One red line on stderr."""
    line = " ".join(printable(str(error), keep_newlines=True).splitlines())
    _stderr().print(Text(f"error: {line}", style="red"), soft_wrap=True)


def answer_failure(kind: str, message: str, exit_code: int, **facts: Any) -> None:
    """Under ``--json``, what failed as the one document, unless the answer was given already."""
    if not ANSWERED.get():
        error = {"kind": kind, "message": message, "exit_code": exit_code}
        _write_json({"error": {**error, **facts}})


def plain_table(*headings: str, title: str | None = None) -> Table:
    """A table without box drawing that pastes well; a heading that starts with > aligns right."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"), justify="right" if right else "left", overflow="fold"
        )
    return table


def cells(*values: object) -> list[Text]:
    """Table cells without markup: layer names come from strangers."""
    return [Text(printable("-" if value is None else str(value))) for value in values]


class _Bars:
    """One bar for each stage: what stands before a colon; what is behind it may change."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, description: str, done: int, total: int) -> None:
        stage, shown = description.partition(":")[0], printable(description)
        task = self._tasks.get(stage)
        if task is None or self._bars.tasks[task].finished:  # the same stage for a second time
            task = self._tasks[stage] = self._bars.add_task(shown, total=total)
        self._bars.update(task, completed=done, total=total, description=shown)


class _Lines:
    """One line when a stage begins."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._last = ""

    def __call__(self, description: str, done: int, total: int) -> None:
        if description != self._last and done < total:
            self._face.say(f"{description} ...")
        self._last = description


def _write_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()  # native code that crashes later takes along what is still held back
    ANSWERED.set(True)
    note_answer()


def _nothing(description: str, done: int, total: int) -> None:
    pass


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)
