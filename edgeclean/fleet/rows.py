"""The rows of a fleet's document: a network or a cell, with what is known of it so far."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeclean.fleet.inputs import NetworkFiles
from edgeclean.fleet.jobs import Done, Failed
from edgeclean.fleet.journal import Journal, Row
from edgeclean.fleet.plan import CellPlan, NetworkPlan
from edgeclean.networks.state import JsonValue
from edgeclean.version import __version__

FORMAT = "edgeclean-fleet-1"
BUNDLES = "bundles"
State = Literal["done", "failed", "waiting"]
# What a row has of a task's facts; null until they are known.
NETWORK_FACTS = ("architecture", "params", "macs", "verdict", "suspicions", "trigger")
CELL_FACTS = (
    *("manifest_sha256", "external_sha256", "purified", "size", "latency"),
    *("evaluation", "gates"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many cells are where.

    Attributes:
        cells: all of the catalogue.
        done: their bundle is in place.
        failed: they were refused, or a defect ended them.
        kept: of those done, the ones that an earlier run had made.
    """

    cells: int
    done: int
    failed: int
    kept: int

    @property
    def waiting(self) -> int:
        """The number of cells that were not begun, or not ended."""
        return self.cells - self.done - self.failed


def network_row(
    network: NetworkPlan, files: NetworkFiles | None, answer: Done | Failed | None
) -> Row:
    """Return the row of a network.

    Args:
        network: the network.
        files: its hashes; None where they could not be taken.
        answer: of its scan and purification; None before.
    """
    row: Row = {
        "name": network.name,
        "checkpoint": network.checkpoint.name,
        "sha256": None if files is None else files.sha256,
        "cells": len(network.cells),
    }
    return row | _outcome(answer, NETWORK_FACTS)


def cell_row(network: NetworkPlan, cell: CellPlan, key: str, answer: Done | Failed | None) -> Row:
    """Return the row of a cell.

    Args:
        network: its network.
        cell: the cell.
        key: names all that decides it.
        answer: None before it is over.
    """
    row: Row = {
        "name": cell.name,
        "network": network.name,
        "target": cell.target,
        "goal": cell.goal,
        "key": key,
        "bundle": f"{BUNDLES}/{cell.name}" if isinstance(answer, Done) else None,
    }
    return row | _outcome(answer, CELL_FACTS)


def document(
    networks: Sequence[NetworkPlan],
    journal: Journal,
    waiting: Mapping[str, str],
    head: Mapping[str, JsonValue],
) -> Iterator[str]:
    """Yield the text of ``fleet.json`` in pieces, a row on a line.

    Args:
        networks: the catalogue's, in its order.
        journal: the rows of what is over.
        waiting: the key of each cell whose row of the journal does not count, by its name.
        head: the keys before the rows.
    """
    yield json.dumps({"format": FORMAT, "edgeclean": __version__, **head}, indent=1)[:-2]
    yield ',\n "networks": [\n'
    yield from _joined(_network_text(one, journal) for one in networks)
    yield '\n ],\n "cells": [\n'
    yield from _joined(
        _cell_text(network, cell, journal, waiting)
        for network in networks
        for cell in network.cells
    )
    yield "\n ]\n}\n"


def _joined(texts: Iterator[str]) -> Iterator[str]:
    first = True
    for text in texts:
        yield text if first else f",\n{text}"
        first = False


def _network_text(network: NetworkPlan, journal: Journal) -> str:
    text = journal.text("networks", network.name)
    return text or json.dumps(network_row(network, None, None))


def _cell_text(
    network: NetworkPlan, cell: CellPlan, journal: Journal, waiting: Mapping[str, str]
) -> str:
    text = None if cell.name in waiting else journal.text("cells", cell.name)
    return text or json.dumps(cell_row(network, cell, waiting.get(cell.name, ""), None))


def _outcome(answer: Done | Failed | None, facts: Sequence[str]) -> Row:
    """Return state, facts, time and error; of a failed one the facts are null."""
    state: State = "waiting"
    if answer is not None:
        state = "done" if isinstance(answer, Done) else "failed"
    known: Mapping[str, JsonValue] = answer.facts if isinstance(answer, Done) else {}
    error = None
    if isinstance(answer, Failed):
        if "gates" in answer.facts:
            known = {"gates": gates_in_short(answer.facts["gates"])}
        error = {"kind": answer.kind, "message": answer.message, "exit_code": answer.exit_code}
    return {
        "state": state,
        **{name: known.get(name) for name in facts},
        "taken_up": known.get("taken_up", []),
        "kept": list(answer.kept) if isinstance(answer, Done) else [],
        "seconds": None if answer is None else answer.seconds,
        "error": error,
    }


def gates_in_short(gates: Sequence[Mapping[str, JsonValue]]) -> list[dict[str, JsonValue]]:
    """Return verdicts without their evidence; where no number was measured, it is null."""
    kept = ("gate", "asked", "measured", "unit", "passed")
    return [{name: gate[name] for name in kept} for gate in gates]


def bundle_of(folder: Path, cell: CellPlan) -> Path:
    """Return the place of a cell's bundle in a fleet's folder."""
    return folder / BUNDLES / cell.name
