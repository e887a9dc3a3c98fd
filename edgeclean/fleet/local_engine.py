"""Jobs in processes on this machine, one process for each place.

Each place is a pool of one process (`concurrent.futures`), so that a process that is killed, most
often because memory is out, takes only its own job along; the place gets a new process. They end
with this one, whatever ends it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

from edgeclean.environment import usable_cores
from edgeclean.files.atomic import clear_up_after
from edgeclean.fleet.jobs import Answer, Job, Lost
from edgeclean.processes import end_with_parent

GIB = 2**30
JOB_BYTES = 3 * GIB // 2  # of a job with its libraries and the process that parses its file
GRACE_SECONDS = 10.0  # for what is in flight to clear up after itself
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_KILLED = (
    "ended before it was done (killed, most often because the machine has no memory left, or a "
    "crash of native code)"
)


@dataclass(slots=True)
class _Place:
    """A pool of one process, and what it does."""

    pool: ProcessPoolExecutor
    process: BaseProcess
    name: str = ""
    output: Path | None = None
    future: Future[Answer] = field(default_factory=Future)


class LocalEngine:
    """An engine of processes on this machine; see `engines.Engine`."""

    name = "local"
    careful = True

    def __init__(self, jobs: int) -> None:
        """Start nothing yet.

        Args:
            jobs: how many processes work side by side.
        """
        self._jobs = jobs
        self._free: list[_Place] = []
        self._busy: dict[str, _Place] = {}

    def room(self) -> int:
        """Return the number of processes."""
        return self._jobs

    def submit(self, name: str, job: Job) -> None:
        """Begin a job in a process that is free, or a new one."""
        place = self._free.pop() if self._free else _new_place()
        place.name, place.output = name, job.output
        place.future = place.pool.submit(_do, job)
        self._busy[name] = place

    def wait(self) -> Sequence[tuple[str, Answer]]:
        """Wait until a job is over; a process that died has lost its own."""
        running = {place.future: place for place in self._busy.values()}
        finished, _ = wait(running, return_when=FIRST_COMPLETED)
        return [self._answer(running[future]) for future in finished]

    def close(self) -> None:
        """Interrupt what is in flight, give it seconds to clear up, then kill it."""
        for place in self._busy.values():
            _send(place, signal.SIGINT)
        wait([place.future for place in self._busy.values()], timeout=GRACE_SECONDS)
        for place in self._busy.values():
            if not place.future.done():
                _send(place, signal.SIGKILL)
        for place in (*self._busy.values(), *self._free):
            place.pool.shutdown(wait=True, cancel_futures=True)
        for place in self._busy.values():
            _clear_up(place)
        self._busy.clear()
        self._free.clear()

    def _answer(self, place: _Place) -> tuple[str, Answer]:
        del self._busy[place.name]
        try:
            answer = place.future.result()
        except BrokenProcessPool:
            place.pool.shutdown(wait=True)
            _clear_up(place)
            return place.name, Lost(reason=_KILLED)
        self._free.append(place)
        return place.name, answer


def jobs_that_fit(threads: int) -> int:
    """Return how many jobs of so many threads this machine's cores and free memory bear."""
    by_cores, memory = usable_cores() // threads, _free_bytes()
    by_memory = by_cores if memory is None else memory // JOB_BYTES
    return max(1, min(by_cores, by_memory))


def _free_bytes() -> int | None:
    """Return the memory that is free here and within this control group; None if nobody knows."""
    found = []
    with suppress(OSError, ValueError, IndexError, StopIteration):
        lines = _MEMORY.read_text("ascii").splitlines()
        line = next(one for one in lines if one.startswith("MemAvailable:"))
        found.append(1024 * int(line.split()[1]))
    with suppress(OSError, ValueError):  # "max" for no limit
        most = int((_GROUP / "memory.max").read_text("ascii"))
        found.append(most - int((_GROUP / "memory.current").read_text("ascii")))
    return max(0, min(found)) if found else None


def _start_tracker() -> None:
    """Start the process that removes what killed processes shared, silent on what it removes."""
    name, before = "PYTHONWARNINGS", os.environ.get("PYTHONWARNINGS")
    silent = "ignore::UserWarning:multiprocessing.resource_tracker"
    os.environ[name] = silent if not before else f"{before},{silent}"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _new_place() -> _Place:
    _start_tracker()
    pool = ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(),),
    )
    # A new process inherits what is blocked: Ctrl-C does not end it while it is importing.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pool.submit(os.getpid)  # starts it
        # Known now, and not when it has imported everything, for it may have to be ended before. A
        # pool keeps its processes to itself until Python 3.14.
        (process,) = pool._processes.values()
        return _Place(pool=pool, process=process)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(parent: int) -> None:
    """Make a new worker end with its parent, deaf to Ctrl-C while idle, and silent on stdout."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.dup2(2, 1)  # stdout has one document; native code prints where it likes


def _do(job: Job) -> Answer:
    from edgeclean.fleet.work import run_job

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return run_job(job)
    except KeyboardInterrupt:
        return Lost(reason="was interrupted")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _send(place: _Place, number: signal.Signals) -> None:
    """Send a signal to a worker, unless it is already gone."""
    with suppress(ProcessLookupError):
        if place.process.is_alive() and place.process.pid is not None:
            os.kill(place.process.pid, number)


def _clear_up(place: _Place) -> None:
    if place.output is not None:
        clear_up_after(place.output)
