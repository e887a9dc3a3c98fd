"""The progress of a run, and the time that it still takes: a plan corrected by measurements.

A long stage reports its steps to a `Progress` and prints nothing itself. `Remaining` follows these
reports along a plan of parts, each with an expected length. The time that finished parts took, over
the time expected, corrects the parts to come; the current part is corrected by its own progress
once that is enough to measure. A part that is over at once, because an earlier run kept its result,
takes no time and is no measurement of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

AT_ONCE = 0.02  # of its expected length: a part that took no more was not run
MEASURABLE = 0.1  # of a part: from here on its own progress gives the time of the rest
TRUST = 3.0  # seconds of measured work that weigh as much as the plan: a first step is slow
LISTED = 0.05  # of the run: shorter stages are left out of the forecast


@runtime_checkable  # the shape checks of the tests ask isinstance
class Progress(Protocol):
    """A function that is called with a stage's description, the steps done and the steps in all.

    A stage calls it once with ``done=0`` and last with ``done == total``.
    """

    def __call__(self, description: str, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` steps are done."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a run to come, and the time that it is expected to take.

    Attributes:
        stage: the stage that it belongs to, in a word for the user.
        title: the description that it will be reported under.
        seconds: the time that it takes if it comes.
        expected: False for a part that depends on the outcome of another.
    """

    stage: str
    title: str
    seconds: float
    expected: bool = True


@runtime_checkable
class PlannedProgress(Progress, Protocol):
    """A progress that also takes the parts to come, in order."""

    def expect(self, parts: Sequence[Part]) -> None:
        """Take the parts of the run; called once, before the first of them."""
        ...


def silent(description: str, done: int, total: int) -> None:
    """Report nothing: the default of every stage."""


class Remaining:
    """The state of one run along its plan.

    Args:
        parts: the parts of the run, in order.
        now: seconds on a clock; every later ``now`` is of the same clock.
    """

    def __init__(self, parts: Sequence[Part], now: float) -> None:
        self._parts, self._start = tuple(parts), now
        self._index, self._since, self._title = 0, now, ""
        self._first, self._share = 0, 0.0
        self._expected, self._measured = 0.0, 0.0
        self._most = 0
        self._over = False

    def note(self, description: str, done: int, total: int, now: float) -> None:
        """Take a stage's report of ``done`` of ``total`` steps, at the time ``now``."""
        repeated = done == 0 and self._share >= 1  # a part of the same title begins
        if repeated or description != self._title:
            self._enter(description, self._index + repeated, now)
        if repeated or description != self._title:  # another count
            self._title, self._first = description, done
        ahead = total - self._first
        share = (done - self._first) / ahead if ahead > 0 else 0.0
        self._share = max(self._share, min(1.0, share))

    def end(self) -> None:
        """End the run: 100 %, and nothing left."""
        self._over = True

    def seconds_left(self, now: float) -> float:
        """Return the time to come, in seconds; 0 or more."""
        if self._over or not self._parts:
            return 0.0
        later = sum(part.seconds for part in self._parts[self._index + 1 :] if part.expected)
        return self._current(now) + later * self._pace(now)

    def percent(self, now: float) -> int:
        """Return the percentage of the time that is over: 0 to 99, never falling; 100 at end."""
        if self._over:
            return 100
        spent, left = max(0.0, now - self._start), self.seconds_left(now)
        share = spent / (spent + left) if spent + left > 0 else 0.0
        self._most = max(self._most, min(99, int(100 * share)))
        return self._most

    def _enter(self, description: str, first: int, now: float) -> None:
        """Move on to the first part of this description that may have begun, if there is one."""
        for index in range(first, len(self._parts)):
            if self._parts[index].title == description:
                if index > self._index:
                    self._finish(now)
                    self._index, self._since, self._share = index, now, 0.0
                return

    def _finish(self, now: float) -> None:
        took, part = max(0.0, now - self._since), self._parts[self._index]
        if took > AT_ONCE * part.seconds and self._title:
            self._expected += part.seconds
            self._measured += took

    def _pace(self, now: float) -> float:
        """Return the seconds that the machine takes for an expected second."""
        expected, measured = self._expected, self._measured
        current = self._parts[self._index].seconds
        spent = max(0.0, now - self._since)
        if self._share >= MEASURABLE and spent > AT_ONCE * self._share * current:
            expected += self._share * current
            measured += spent
        return (measured + TRUST) / (expected + TRUST)

    def _current(self, now: float) -> float:
        """Return the seconds left of the part that is running."""
        spent = max(0.0, now - self._since)
        if self._share >= MEASURABLE:
            return spent * (1 - self._share) / self._share
        length = self._pace(now) * self._parts[self._index].seconds
        return max(length - spent, length / 10)  # where it takes longer than it should


def forecast(parts: Sequence[Part]) -> str:
    """Return the plan as one line: the whole run, and its longer stages in order."""
    seconds = expected_seconds(parts)
    total = sum(seconds.values())
    listed = [(stage, one) for stage, one in seconds.items() if one >= max(5.0, LISTED * total)]
    stages = ", ".join(f"{stage} {in_words(one).removeprefix('about ')}" for stage, one in listed)
    return f"{in_words(total)} on this machine" + (f" ({stages})" if stages else "")


def expected_seconds(parts: Sequence[Part]) -> dict[str, float]:
    """Return the expected seconds by stage; their sum is that of the run."""
    seconds: dict[str, float] = {}
    for part in parts:
        seconds[part.stage] = seconds.get(part.stage, 0.0) + part.seconds * part.expected
    return seconds


def in_words(seconds: float) -> str:
    """Return a length of time as an estimate in words: "about 6 min", "about 40 s"."""
    if seconds < 5:
        return "a few seconds"
    if seconds < 57:
        return f"about {5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 100 else f"about {seconds / 3600:.1f} h"
