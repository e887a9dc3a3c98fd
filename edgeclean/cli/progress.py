"""What is shown while a command runs: bars on a terminal, lines in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

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
from rich.text import Text

from edgeclean.files.text import printable
from edgeclean.progress import Part, Remaining, forecast, in_words
from edgeclean.progress import Progress as ProgressCallback

STAGE: ContextVar[str] = ContextVar("STAGE", default="")  # as a stage described itself last
LINE_EVERY = 10.0  # seconds, in a log
TICK_EVERY = 1.0
Clock = Callable[[], float]


@contextmanager
def bars(console: Console) -> Iterator[ProgressCallback]:
    """Within, a bar for each stage and one for the whole run."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _Left())
    words = TextColumn("{task.description}", markup=False)
    with Bars(words, *columns, console=console) as drawn:
        shown = _Bars(drawn)
        with ticking(shown.tick):
            yield shown
        shown.end()


class Quiet:
    """Shows nothing, and remembers what was being done."""

    def __call__(self, description: str, done: int, total: int) -> None:
        """See `edgeclean.progress.Progress`."""
        STAGE.set(description)


class _Job:
    """What both ways of showing a run share: what is being done, and what is left of the run."""

    def __init__(self, write: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._left: Remaining | None = None
        self._lock = threading.RLock()  # the ticks come from a thread of their own

    def expect(self, parts: Sequence[Part]) -> None:
        """See `edgeclean.progress.PlannedProgress`."""
        with self._lock:
            self._left = Remaining(parts, self._clock())
            self._write(forecast(parts))
            self._planned()

    def _planned(self) -> None:
        """Once the plan is there."""


class Lines(_Job):
    """A line when a stage begins, and every ten seconds what is being done and what is left."""

    def __init__(self, write: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        super().__init__(write, clock)
        self._last, self._written_at = ("", 0, 0), clock()

    def __call__(self, description: str, done: int, total: int) -> None:
        """See `edgeclean.progress.Progress`."""
        STAGE.set(description)
        with self._lock:
            if self._left is not None:
                self._left.note(description, done, total, self._clock())
            begins = description != self._last[0] and done < total
            self._last = (description, done, total)
            if begins:
                self._write_stage("")
            else:
                self.tick()

    def tick(self) -> None:
        """Write where the run is, if nothing was written for ten seconds."""
        with self._lock:
            if self._last[0] and self._clock() - self._written_at >= LINE_EVERY:
                self._write_stage(f" {self._last[1]}/{self._last[2]}")

    def end(self) -> None:
        """The last line of a run that was planned."""
        with self._lock:
            if self._left is not None:
                self._left.end()
                self._write(f"[{self._left.percent(self._clock())} %] done")

    def _write_stage(self, count: str) -> None:
        description = self._last[0]
        self._written_at = now = self._clock()
        if self._left is not None:
            left = in_words(self._left.seconds_left(now))
            self._write(f"[{self._left.percent(now):3d} %] {description} ... {left} left")
        else:
            self._write(f"{description} ...{count}")


class _Bars(_Job):
    """One bar for each stage: what stands before a colon; what is behind it may change.

    The last bar is the whole run's, if that was planned.
    """

    def __init__(self, drawn: Bars) -> None:
        def write(message: str) -> None:  # above the bars
            drawn.console.print(Text(printable(message)), soft_wrap=True)

        super().__init__(write)
        self._bars = drawn
        self._tasks: dict[str, TaskID] = {}
        self._whole: TaskID | None = None

    def __call__(self, description: str, done: int, total: int) -> None:
        """See `edgeclean.progress.Progress`."""
        STAGE.set(description)
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
def ticking(tick: Callable[[], None]) -> Iterator[None]:
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
