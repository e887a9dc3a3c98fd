"""A runtime that is always installed, with one of the engines of `rude_engines`."""

from __future__ import annotations

from rude_engines import Polite

from edgeclean.child.inside import ChildLimits
from exporters.confined_runtime import ConfinedExporter


class RudeExporter(ConfinedExporter):
    """A runtime that is always installed."""

    name = "rude"
    needs = "edgeclean[rude]"
    packages = {"numpy": ((1,), (99,))}  # noqa: RUF012
    precisions = ("fp32",)
    files = ("file",)
    computes = {"fp32": "rudely"}  # noqa: RUF012


def rude(engine: type[Polite], **limits: int) -> RudeExporter:
    """An exporter whose engine is that one, with these limits."""
    exporter = RudeExporter(limits=ChildLimits(**limits))
    exporter.engine = f"rude_engines:{engine.__name__}"  # type: ignore[misc]
    return exporter
