"""How a command speaks: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeclean.cli.progress import Lines, Quiet, bars, ticking
from edgeclean.cli.streams import answer_stream
from edgeclean.errors import AnswerLostError, EdgecleanError
from edgeclean.files.text import one_line, printable
from edgeclean.notes import note_answer
from edgeclean.progress import Progress as ProgressCallback

WIDE = 120
ANSWERED: ContextVar[bool] = ContextVar("ANSWERED", default=False)


@dataclass(frozen=True, slots=True)
class Reporter:
    """One command's way to the user.

    Attributes:
        as_json: stdout is one JSON document.
        quiet: stderr only holds errors, and stdout no tables.
    """

    as_json: bool = False
    quiet: bool = False

    @property
    def is_terminal(self) -> bool:
        """Whether stderr is one, and not a log."""
        return _stderr().is_terminal

    def note(self, message: str) -> None:
        """A line on stderr."""
        if not self.quiet:
            _stderr().print(Text(one_line(message)), soft_wrap=True)

    def answer(self, document: dict[str, Any], *tables: Table) -> None:
        """What the command was asked for: as JSON, or else as tables."""
        if self.as_json:
            _write_json(document)
        elif not self.quiet:
            # In a pipe nothing says how wide it may be: a SHA-256 is not folded there.
            stream = answer_stream()
            free = not stream.isatty() and "COLUMNS" not in os.environ
            console = Console(file=stream, highlight=False, width=WIDE if free else None)
            for table in tables:
                # A title is a sentence: as wide as it is, not as what stands below it.
                title, table.title = table.title, None
                if title is not None:
                    console.print(Text(printable(str(title)), style="bold"), soft_wrap=True)
                console.print(table)

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback]:
        """Bars on a terminal; a line every ten seconds in a log; nothing when quiet."""
        if self.quiet:
            yield Quiet()
        elif _stderr().is_terminal:
            with bars(_stderr()) as shown:
                yield shown
        else:
            lines = Lines(self.note)
            with ticking(lines.tick):
                yield lines
            lines.end()


def show_error(error: EdgecleanError) -> None:
    """One red line on stderr."""
    show_line(f"error: {error}")


def show_line(message: str) -> None:
    """Why a command ended, on stderr, whatever else is quiet."""
    _stderr().print(Text(one_line(message), style="red"), soft_wrap=True)


def answer_failure(kind: str, message: str, exit_code: int, **facts: Any) -> None:
    """Under ``--json``, what failed as the one document, unless the answer was given already."""
    if not ANSWERED.get():
        error = {"kind": kind, "message": one_line(message), "exit_code": exit_code}
        with suppress(AnswerLostError):  # which may be what failed
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


def _write_json(document: dict[str, Any]) -> None:
    stream = answer_stream()
    stream.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    stream.flush()  # native code that crashes later takes along what is still held back
    ANSWERED.set(True)
    note_answer()


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)
