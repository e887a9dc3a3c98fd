"""Which task is next: a pure state machine, which knows no process, no file and no clock.

Tasks are taken in the order in which they were given, as soon as those that they wait for are over:
given network by network, the fleet goes on with the cells of one before it opens the next, so that
what a network leaves in memory and in caches is small and short-lived.

A task whose worker was lost is tried again, `tries` times in all, where `careful` alone on the
machine, since memory is what most often ends a worker. Machines of a cluster come and go, and a
task that goes with one is not to blame: it is begun `NODES` times as often before it is given up. A
task that failed takes along those that need it, and nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from edgeclean.fleet.jobs import Answer, Done, Failed, Lost

NODES = 10  # machines that a task may lose for each try that it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One node of the graph.

    Attributes:
        name: unique in the graph.
        needs: tasks before it; if one of them fails, so does this one, for the same reason.
        after: tasks that it waits for, however they end.
        alone: nothing else may run meanwhile on the same machine, for it measures time.
    """

    name: str
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    alone: bool = False


class Schedule:
    """The state of a graph of tasks.

    Attributes:
        in_flight: the names of the tasks that were taken and are not over.
        tried: how often a task's worker was lost, by name.
        moved: how often it went with its machine.
    """

    def __init__(self, tasks: Iterable[Task], *, tries: int = 3, careful: bool = True) -> None:
        """Take the graph; each task comes after all that it waits for.

        Args:
            tasks: in the order in which they are to be taken.
            tries: how often a task is begun whose worker is lost.
            careful: whether ``alone`` matters, and a lost task is tried again alone: true on one
                machine, false where an engine has many.

        Raises:
            ValueError: two tasks have one name, or a task waits for one that does not come before.
        """
        self.in_flight: set[str] = set()
        self.tried: dict[str, int] = {}
        self.moved: dict[str, int] = {}
        self._tries, self._careful = tries, careful
        self._tasks: dict[str, Task] = {}
        self._rank: dict[str, int] = {}
        self._waits: dict[str, int] = {}
        self._followers: dict[str, list[str]] = {}
        self._ready: list[int] = []
        self._names: list[str] = []
        self._left: set[str] = set()
        self._alone: set[str] = set()  # lost once: to be tried alone
        for task in tasks:
            self._add(task)

    def __len__(self) -> int:
        """Return how many tasks there are."""
        return len(self._tasks)

    @property
    def over(self) -> bool:
        """Whether nothing is left to take or to wait for."""
        return not self._left

    @property
    def left(self) -> int:
        """The number of tasks that are not over, those in flight among them."""
        return len(self._left)

    def take(self, room: int) -> str | None:
        """Return a task to begin now; None where there is none, or no room for it.

        Args:
            room: how many tasks may be in flight together.
        """
        if len(self.in_flight) >= room or not self._ready:
            return None
        name = self._names[self._ready[0]]
        if self.in_flight and self._wants_quiet(name):
            return None
        if any(self._wants_quiet(one) for one in self.in_flight):
            return None
        heapq.heappop(self._ready)
        self.in_flight.add(name)
        return name

    def end(self, name: str, answer: Answer) -> Iterator[tuple[str, Done | Failed]]:
        """Note how a task in flight ended; yield what is over by that, itself first.

        Raises:
            KeyError: the task is not in flight.
        """
        self.in_flight.remove(name)
        if isinstance(answer, Lost):
            counted, most = self.tried, self._tries
            if answer.with_its_node:
                counted, most = self.moved, NODES * self._tries
            counted[name] = times = counted.get(name, 0) + 1
            if times < most:
                if not answer.with_its_node:
                    self._alone.add(name)
                heapq.heappush(self._ready, self._rank[name])
                return
            answer = Failed(
                kind="EndedBySignalError",
                message=f"its process {answer.reason}, {times} times; run the same command again "
                "to try once more, with fewer --jobs or more memory",
                exit_code=1,
            )
        yield from self._over(name, answer)

    def _add(self, task: Task) -> None:
        if task.name in self._tasks:
            raise ValueError(f"two tasks are called {task.name}")
        self._rank[task.name] = len(self._names)
        self._names.append(task.name)
        self._tasks[task.name] = task
        self._left.add(task.name)
        before = {*task.needs, *task.after}
        for one in before:
            if one not in self._tasks or one == task.name:
                raise ValueError(f"{task.name} waits for {one}, which does not come before it")
            self._followers.setdefault(one, []).append(task.name)
        self._waits[task.name] = len(before)
        if not before:
            heapq.heappush(self._ready, self._rank[task.name])

    def _wants_quiet(self, name: str) -> bool:
        return self._careful and (self._tasks[name].alone or name in self._alone)

    def _over(self, name: str, answer: Done | Failed) -> Iterator[tuple[str, Done | Failed]]:
        """Yield a task that is over, and those that fail with it, each before its own followers."""
        ended = [(name, answer)]
        while ended:
            name, answer = ended.pop()
            if name not in self._left:  # it failed with another that it needs
                continue
            self._left.remove(name)
            yield name, answer
            for follower in reversed(self._followers.pop(name, [])):
                if isinstance(answer, Failed) and name in self._tasks[follower].needs:
                    ended.append((follower, answer))
                    continue
                self._waits[follower] -= 1
                if not self._waits[follower] and follower in self._left:
                    heapq.heappush(self._ready, self._rank[follower])
