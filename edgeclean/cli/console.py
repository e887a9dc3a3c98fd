"""How a command speaks: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from edgeclean.errors import EdgecleanError, InterruptedRunError
from edgeclean.printable import printable
from edgeclean.progress import Part
from edgeclean.progress import Progress as ProgressCallback
from edgeclean.remaining import Remaining, forecast, in_words

ANSWERED: ContextVar[bool] = ContextVar("ANSWERED", default=False)
DOING: ContextVar[str] = ContextVar("DOING", default="")  # what a stage told last
KEEPS: ContextVar[bool | None] = ContextVar("KEEPS", default=None)  # whether stages are kept
LINE_EVERY = 10.0  # seconds, in a log
TICK_EVERY = 1.0
Clock = Callable[[], float]
P = ParamSpec("P")
T = TypeVar("T")


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
                console.print(table)

    @contextmanager
    def progress(self) -> Iterator[ProgressCallback]:
        """Bars on a terminal; a line every ten seconds in a log; nothing when quiet."""
        if self.quiet:
            yield _Quiet()
        elif not _stderr().is_terminal:
            lines = Lines(self.say)
            with _ticking(lines.tick):
                yield lines
            lines.end()
        else:
            with Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                _Left(),
                console=_stderr(),
            ) as bars:
                shown = _Bars(bars)
                with _ticking(shown.tick):
                    yield shown
                shown.end()


def show_error(error: EdgecleanError) -> None:
    """One red line on stderr."""
    line = " ".join(printable(str(error), keep_newlines=True).splitlines())
    kind = "" if isinstance(error, InterruptedRunError) else "error: "  # the user's own wish
    _stderr().print(Text(kind + line, style="red"), soft_wrap=True)


def interrupted_line() -> str:
    """What a run that was interrupted leaves, and how to go on."""
    stage = DOING.get().partition(":")[0].partition(",")[0]
    where = f" while {stage[:1].lower()}{stage[1:]}" if stage else ""
    left = {
        True: "; finished stages are kept: run the same command again to go on",
        False: "; nothing was kept: run the same command again to start over",
        None: "; run the same command again to start over",
    }
    return f"interrupted{where}{left[KEEPS.get()]}"


def interruptible(command: Callable[P, T]) -> Callable[P, T]:
    """The command, in which Ctrl-C is an error of one line like any other."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            raise InterruptedRunError(interrupted_line()) from None

    return run


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


class _Quiet:
    """Shows nothing, and remembers what was being done."""

    def __call__(self, description: str, done: int, total: int) -> None:
        DOING.set(description)


class _Job:
    """What both ways of showing a run share: what is being done, and what is left of the run."""

    def __init__(self, say: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._left: Remaining | None = None
        self._lock = threading.RLock()  # the ticks come from a thread of their own

    def expect(self, parts: Sequence[Part]) -> None:
        """See `edgeclean.progress.PlannedProgress`."""
        with self._lock:
            self._left = Remaining(parts, self._clock())
            self._say(forecast(parts))
            self._planned()

    def _planned(self) -> None:
        """Once the plan is there."""


class Lines(_Job):
    """A line when a stage begins, and every ten seconds what is being done and what is left."""

    def __init__(self, say: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        super().__init__(say, clock)
        self._told, self._spoke = ("", 0, 0), clock()

    def __call__(self, description: str, done: int, total: int) -> None:
        """See `edgeclean.progress.Progress`."""
        DOING.set(description)
        with self._lock:
            if self._left is not None:
                self._left.note(description, done, total, self._clock())
            begins = description != self._told[0] and done < total
            self._told = (description, done, total)
            if begins:
                self._tell()
            else:
                self.tick()

    def tick(self) -> None:
        """Say where the run is, if nothing was said for ten seconds."""
        with self._lock:
            if self._told[0] and self._clock() - self._spoke >= LINE_EVERY:
                self._tell()

    def end(self) -> None:
        """The last line of a run that was planned."""
        with self._lock:
            if self._left is not None:
                self._left.end()
                self._say("[100 %] done")

    def _tell(self) -> None:
        description, done, total = self._told
        self._spoke = now = self._clock()
        if self._left is not None:
            left = in_words(self._left.seconds_left(now))
            self._say(f"[{self._left.percent(now):3d} %] {description}, {left} left")
        else:
            count = f" {done}/{total}" if done else ""
            self._say(f"{description} ...{count}")


class _Bars(_Job):
    """One bar for each stage: what stands before a colon; what is behind it may change.

    The last bar is the whole run's, if that was planned.
    """

    def __init__(self, bars: Bars) -> None:
        def say(message: str) -> None:  # above the bars
            bars.console.print(Text(printable(message)), soft_wrap=True)

        super().__init__(say)
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._whole: TaskID | None = None

    def __call__(self, description: str, done: int, total: int) -> None:
        """See `edgeclean.progress.Progress`."""
        DOING.set(description)
        stage, shown = description.partition(":")[0], printable(description)
        with self._lock:
            task = self._tasks.get(stage)
            if task is None or self._task(task).finished:  # the same stage for a second time
                task = self._tasks[stage] = self._bars.add_task(shown, total=total)
                self._planned()
            self._bars.update(task, completed=done, total=total, description=shown)
            if self._left is not None:
                self._left.note(description, done, total, self._clock())
        self.tick()

    def tick(self) -> None:
        """Draw the whole run's bar as it is now."""
        with self._lock:
            if self._left is not None and self._whole is not None:
                now = self._clock()
                left = f"{in_words(self._left.seconds_left(now))} left"
                self._bars.update(self._whole, completed=self._left.percent(now), left=left)

    def end(self) -> None:
        """The whole run's bar is full."""
        with self._lock:
            if self._left is not None and self._whole is not None:
                self._left.end()
                self._bars.update(self._whole, completed=100, left="done")

    def _planned(self) -> None:
        """The whole run's bar stays the last one."""
        if self._left is not None:
            start = None if self._whole is None else self._task(self._whole).start_time
            if self._whole is not None:
                self._bars.remove_task(self._whole)
            self._whole = self._bars.add_task("Whole run", total=100, left="")
            if start is not None:
                self._task(self._whole).start_time = start
            self.tick()

    def _task(self, task: TaskID) -> Task:
        return next(one for one in self._bars.tasks if one.id == task)


class _Left(TimeRemainingColumn):
    """Rich's guess from the steps of a stage; of the whole run, the plan's."""

    def render(self, task: Task) -> Text:
        """The words of one bar."""
        if "left" in task.fields:
            return Text(task.fields["left"], style="progress.remaining")
        return super().render(task)


@contextmanager
def _ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Within, ``tick`` is called every second from a thread: a stage may be silent for minutes."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(TICK_EVERY):
            tick()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _write_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    ANSWERED.set(True)


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)
