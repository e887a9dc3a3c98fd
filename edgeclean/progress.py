"""How a long stage tells its caller how far it is, without printing anything itself."""

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
