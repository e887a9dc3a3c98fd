"""What an engine has to be able to do, and the loop that drives one along a schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from edgeclean.fleet.jobs import Answer, Done, Failed, Job
from edgeclean.fleet.scheduler import Schedule


@runtime_checkable  # the shape checks of the tests ask isinstance
class Engine(Protocol):
    """A place where jobs are done: processes here, a cluster, or a simulation.

    Attributes:
        name: in a word.
        careful: whether its jobs share one machine: one that measures time then runs alone.
    """

    name: str
    careful: bool

    def room(self) -> int:
        """Return how many jobs may be in flight now; a cluster may grow."""
        ...

    def submit(self, name: str, job: Job) -> None:
        """Begin a job; its answer comes from `wait` under this name."""
        ...

    def wait(self) -> Sequence[tuple[str, Answer]]:
        """Wait until a job is over, and return those that are; there is one in flight."""
        ...

    def close(self) -> None:
        """End what is in flight and let go of everything; called once, whatever happened."""
        ...


def drive(
    schedule: Schedule,
    engine: Engine,
    job_of: Callable[[str], Job],
    over: Callable[[str, Done | Failed], None],
    begun: Callable[[], None] = lambda: None,
) -> None:
    """Take tasks as they become ready, until all are over.

    Args:
        schedule: what is to be done.
        engine: where.
        job_of: makes the job of a task when it is begun, and not before: there may be thousands.
        over: told of every task that is over, in the order in which they end.
        begun: told whenever all is in flight that there is room for.
    """
    while not schedule.over:
        while (name := schedule.take(engine.room())) is not None:
            engine.submit(name, job_of(name))
        begun()
        for name, answer in engine.wait():
            for ended, final in schedule.end(name, answer):
                over(ended, final)
