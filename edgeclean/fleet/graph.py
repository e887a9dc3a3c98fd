"""The graph of stages that makes all cells.

A network is scanned and purified by one task, which its cells need. Where cells plan by a time and
have no table, one task for an architecture measures it, alone on its machine. Cells of a network
that differ in nothing before the export come one after another, so that the second takes up what
the first tuned. These orders only save work: what is shared is decided by the hash under which the
cache keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeclean.fleet.inputs import NetworkFiles
from edgeclean.fleet.jobs import Job, Kind
from edgeclean.fleet.plan import CellPlan, NetworkPlan
from edgeclean.fleet.scheduler import Task
from edgeclean.runner import digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A task of the graph with what it works on.

    Attributes:
        task: its place in the graph.
        kind: the work.
        network: the network.
        cell: of a cell, the cell; of other tasks one for whose options it works.
    """

    task: Task
    kind: Kind
    network: NetworkPlan
    cell: CellPlan


def graph(
    networks: Sequence[NetworkPlan],
    files: Mapping[str, NetworkFiles],
    wanted: Mapping[str, Sequence[CellPlan]],
) -> Iterator[Node]:
    """Yield the nodes, each after all that it waits for, network by network.

    Args:
        networks: in the order in which they are to be worked on.
        files: the hashes of each network's files, by its name.
        wanted: the cells of each network that are to be made; none for one that is left out.
    """
    tables: dict[str, str] = {}
    twins: dict[tuple[str, str], str] = {}
    for network in networks:
        cells = wanted.get(network.name, ())
        if not cells:
            continue
        same = files[network.name].key, cells[0].options.shared
        twin = twins.setdefault(same, f"purify:{network.name}")
        name = f"purify:{network.name}"
        purify = Task(name=name, after=() if twin == name else (twin,))
        # A lower opset may be out of reach for a network: that is the matter of its own cells.
        able = max(cells, key=lambda one: one.options.settings.export.opset)
        yield Node(task=purify, kind="purify", network=network, cell=able)
        tuned: dict[str, str] = {}
        for cell in cells:
            after = []
            if cell.options.measures_table:
                key = _table_key(files[network.name], cell)
                if key not in tables:
                    tables[key] = f"table:{len(tables)}"
                    table = Task(name=tables[key], needs=(purify.name,), alone=True)
                    yield Node(task=table, kind="table", network=network, cell=cell)
                after.append(tables[key])
            name = f"cell:{cell.name}"
            if cell.options.tuned in tuned:
                after.append(tuned[cell.options.tuned])
            tuned.setdefault(cell.options.tuned, name)
            task = Task(name=name, needs=(purify.name,), after=tuple(dict.fromkeys(after)))
            yield Node(task=task, kind="cell", network=network, cell=cell)


def job_of(node: Node, files: NetworkFiles, *, cache: Path, bundles: Path) -> Job:
    """Return what a worker is told of a node.

    Args:
        node: the node.
        files: the hashes of its network's files.
        cache: the folder of finished stages.
        bundles: the folder of all bundles.
    """
    network, cell = node.network, node.cell
    is_cell = node.kind == "cell"
    return Job(
        kind=node.kind,
        checkpoint=network.checkpoint,
        sha256=files.sha256,
        model=network.model,
        code=network.named,
        beside=files.beside,
        settings=cell.options.settings,
        threads=cell.options.threads,
        cache=cache,
        target=cell.options.target,
        policy=cell.options.policy,
        table=cell.options.table if is_cell else None,
        evaluate=network.evaluate if is_cell else None,
        output=bundles / cell.name if is_cell else None,
    )


def _table_key(files: NetworkFiles, cell: CellPlan) -> str:
    """Name what decides a table, as far as it is known before the network is loaded.

    Two networks of one model file have the same layers; of an ONNX file only its bytes tell.
    """
    settings = cell.options.settings
    named = files.model_sha256 if files.is_state_dict else files.sha256
    ranks = settings.ranks
    overrides = sorted(ranks.overrides.items())
    return digest([named, overrides, settings.latency, ranks.rank_multiple, ranks.of_layers])
