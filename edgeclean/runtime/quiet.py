"""Clocks and runs that leave out what other programs take: it is no part of a layer's time."""

from __future__ import annotations

import time
from collections.abc import Callable

TRIES = 8


def milliseconds(run: Callable[[], object], *, threads: int) -> float:
    """How long a run takes when nothing else wants the processor.

    On one thread that is the thread's own processor time, which equals the wall clock's on an idle
    machine. On several it is the wall clock's time of the first of at most eight runs in which no
    thread of this process was put aside: a scheduler takes the processor away for milliseconds,
    more than most layers take. If no run is left alone, the shortest one counts.
    """
    if threads == 1:
        start = time.thread_time_ns()
        run()
        return (time.thread_time_ns() - start) / 1e6
    shortest = float("inf")
    for _ in range(TRIES):
        before, start = _interruptions(), time.perf_counter_ns()
        run()
        ms = (time.perf_counter_ns() - start) / 1e6
        if _interruptions() == before:
            return ms
        shortest = min(shortest, ms)
    return shortest


def _interruptions() -> int:
    """Involuntary context switches of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
