"""How a long stage tells its caller how far it is, without printing anything itself.

How far a run is, and how long it still takes: a plan, corrected by what was measured.

Every part of the plan has an expected length. What finished parts took, over what they were
expected to take, corrects the parts to come; the current part is corrected by its own progress as
soon as that says something. A part that is over at once, because its result was kept by an earlier
run, takes nothing and says nothing of the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable  # the shape checks of the tests ask isinstance
class Progress(Protocol):
    """Called with a stage's description, the steps done and the steps in all.

    A stage calls it once with ``done=0`` and last with ``done == total``.
    """

    def __call__(self, description: str, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` steps are done."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a run that is to come, and how long it is expected to take.

    Attributes:
        stage: what it belongs to, in a word for the user.
        title: the description that it will be told under.
        seconds: that it takes if it comes.
        expected: False for what comes only where something else turns out so.
    """

    stage: str
    title: str
    seconds: float
    expected: bool = True


@runtime_checkable
class PlannedProgress(Progress, Protocol):
    """A progress that also wants to know what is to come, in order."""

    def expect(self, parts: Sequence[Part]) -> None:
        """Take the parts of the run; called once, before the first of them."""
        ...


def silent(description: str, done: int, total: int) -> None:
    """Report nothing: the default of every stage."""


AT_ONCE = 0.02  # of its expected length: a part that took no more was not run
TELLING = 0.1  # of a part: from here on its own progress says how long the rest takes
TRUST = 3.0  # seconds of measured work that weigh as much as the plan: a first step is slow
TOLD = 0.05  # of the run: shorter stages are not worth a word


class Remaining:
    """The state of one run.

    Args:
        parts: of the run, in order.
        now: seconds on the clock that every later ``now`` is of.
    """

    def __init__(self, parts: Sequence[Part], now: float) -> None:
        self._parts, self._start = tuple(parts), now
        self._index, self._since, self._title = 0, now, ""
        self._first, self._share = 0, 0.0
        self._expected, self._measured = 0.0, 0.0
        self._most = 0
        self._over = False

    def note(self, description: str, done: int, total: int, now: float) -> None:
        """What a stage has told, at the time ``now``."""
        again = done == 0 and self._share >= 1  # a part of the same title begins
        if again or description != self._title:
            self._enter(description, self._index + again, now)
        if again or description != self._title:  # another count
            self._title, self._first = description, done
        ahead = total - self._first
        share = (done - self._first) / ahead if ahead > 0 else 0.0
        self._share = max(self._share, min(1.0, share))

    def end(self) -> None:
        """The run is over: 100 %, and nothing left."""
        self._over = True

    def seconds_left(self, now: float) -> float:
        """What is to come, in seconds; 0 or more."""
        if self._over or not self._parts:
            return 0.0
        later = sum(part.seconds for part in self._parts[self._index + 1 :] if part.expected)
        return self._current(now) + later * self._pace(now)

    def percent(self, now: float) -> int:
        """Of the run's time, what is over: 0..99, never falling, and 100 at the end alone."""
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
        """Seconds that the machine takes for what was expected to take one."""
        expected, measured = self._expected, self._measured
        current = self._parts[self._index].seconds
        spent = max(0.0, now - self._since)
        if self._share >= TELLING and spent > AT_ONCE * self._share * current:
            expected += self._share * current
            measured += spent
        return (measured + TRUST) / (expected + TRUST)

    def _current(self, now: float) -> float:
        """Of the part that is running."""
        spent = max(0.0, now - self._since)
        if self._share >= TELLING:
            return spent * (1 - self._share) / self._share
        length = self._pace(now) * self._parts[self._index].seconds
        return max(length - spent, length / 10)  # where it takes longer than it should


def in_words(seconds: float) -> str:
    """A length of time as a guess is told: "about 6 min", "about 40 s"."""
    if seconds < 5:
        return "a few seconds"
    if seconds < 57:
        return f"about {5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 100 else f"about {seconds / 3600:.1f} h"


def forecast(parts: Sequence[Part]) -> str:
    """The plan as one line: the whole run, and its longer stages in order."""
    seconds = expected_seconds(parts)
    total = sum(seconds.values())
    told = [(stage, one) for stage, one in seconds.items() if one >= max(5.0, TOLD * total)]
    stages = ", ".join(f"{stage} {in_words(one).removeprefix('about ')}" for stage, one in told)
    return f"{in_words(total)} on this machine" + (f" ({stages})" if stages else "")


def expected_seconds(parts: Sequence[Part]) -> dict[str, float]:
    """By stage, what is expected; the sum is that of the run."""
    seconds: dict[str, float] = {}
    for part in parts:
        seconds[part.stage] = seconds.get(part.stage, 0.0) + part.seconds * part.expected
    return seconds
