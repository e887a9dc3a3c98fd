"""How a long stage tells its caller how far it is, without printing anything itself."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable  # the shape checks of the tests ask isinstance
@runtime_checkable
class Progress(Protocol):
    """Called with a stage's description, the steps done and the steps in all.

    A stage calls it once with ``done=0`` and last with ``done == total``.
    """

    def __call__(self, description: str, done: int, total: int) -> None:
        """Note that ``done`` of ``total`` steps are done."""
        ...


def silent(description: str, done: int, total: int) -> None:
    """Report nothing: the default of every stage."""
