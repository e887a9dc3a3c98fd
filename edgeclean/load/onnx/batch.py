"""An axis put before the batch, as attention does with queries, keys and values, and taken apart.

``reshape(n, tokens, 3, heads, width).permute(2, 0, 3, 1, 4)`` puts the batch second; then each of
the three is taken of the first axis. Taken before the axes are turned, the batch never moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from edgeclean.load.onnx.graph import prune_, replace_nodes_

NEW_SLICE, NEW_SQUEEZE = 10, 13  # opsets from which bounds and axes are inputs


@dataclass(frozen=True, slots=True)
class _Turned:
    """A value whose axes are those of another in some order, from an index of the first on."""

    source: str
    order: tuple[int, ...]
    start: int = 0


def batch_first_(graph: GraphProto, opset: int) -> None:
    """Take parts of an axis before it is put before the batch, wherever a graph does so after.

    Args:
        graph: a simplified graph, which is changed.
        opset: the version of its operators.
    """
    constants = {one.name: one for one in graph.initializer}
    turned: dict[str, _Turned] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        value = turned.get(node.input[0]) if node.input else None
        taken = None
        if node.op_type == "Transpose":
            order = _integers(node, "perm", 1, {})
            if order and order[0] != 0:
                turned[node.output[0]] = _Turned(node.input[0], tuple(order))
        elif value is not None:
            taken = _taken(node, value, constants)
            turned.update(_parts(node, value, constants))
        nodes += [node] if taken is None else _written(graph, node.output[0], taken, opset)
    if len(nodes) != len(graph.node):
        replace_nodes_(graph, nodes)
        prune_(graph)


def _parts(
    node: NodeProto, value: _Turned, constants: Mapping[str, TensorProto]
) -> dict[str, _Turned]:
    """Return the outputs of a Split or Slice that are single entries of the first axis."""
    if node.op_type == "Split" and _integers(node, "axis", 9, constants) in ([], [0]):
        sizes = _integers(node, "split", 1, constants) or [1] * len(node.output)
        if set(sizes) == {1}:
            return {
                name: _Turned(value.source, value.order, value.start + place)
                for place, name in enumerate(node.output)
            }
    if node.op_type == "Slice" and _integers(node, "axes", 3, constants) == [0]:
        starts, ends = (
            _integers(node, name, place, constants) for name, place in (("starts", 1), ("ends", 2))
        )
        steps = _integers(node, "steps", 4, constants) or [1]
        if len(starts) == 1 and starts[0] >= 0 and ends == [starts[0] + 1] and steps == [1]:
            part = _Turned(value.source, value.order, value.start + starts[0])
            return {node.output[0]: part}
    return {}


def _taken(node: NodeProto, value: _Turned, constants: Mapping[str, TensorProto]) -> _Turned | None:
    """Return what a Gather or Squeeze takes of the first axis, if it drops that axis."""
    if node.op_type == "Squeeze" and _integers(node, "axes", 1, constants) == [0]:
        return value
    if node.op_type == "Gather" and _integers(node, "axis", 9, constants) in ([], [0]):
        index = constants.get(node.input[1])
        if index is not None and not index.dims:
            place = int(numpy_helper.to_array(index))
            return _Turned(value.source, value.order, value.start + place) if place >= 0 else None
    return None


def _written(graph: GraphProto, name: str, taken: _Turned, opset: int) -> list[NodeProto]:
    """Return a Slice, a Squeeze and a Transpose that make the value of that name."""
    axis = taken.order[0]
    lists = {"starts": taken.start, "ends": taken.start + 1, "axes": axis}
    names = [f"{name}/{key}" for key in lists]
    for key, number in zip(names, lists.values(), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), key))
    order = [one - (one > axis) for one in taken.order[1:]]
    cut, flat = f"{name}/cut", f"{name}/flat"
    old: dict[str, Any] = {key: [number] for key, number in lists.items()}
    return [
        helper.make_node("Slice", [taken.source, *names], [cut])
        if opset >= NEW_SLICE
        else helper.make_node("Slice", [taken.source], [cut], **old),
        helper.make_node("Squeeze", [cut, names[2]], [flat])
        if opset >= NEW_SQUEEZE
        else helper.make_node("Squeeze", [cut], [flat], axes=[axis]),
        helper.make_node("Transpose", [flat], [name], perm=order),
    ]


def _integers(
    node: NodeProto, name: str, place: int, constants: Mapping[str, TensorProto]
) -> list[int]:
    """Return whole numbers that are an attribute, or a constant at an input; [] for neither."""
    for one in node.attribute:
        if one.name == name:
            return [int(number) for number in one.ints] or [int(one.i)]
    given = constants.get(node.input[place]) if place < len(node.input) else None
    return [] if given is None else [int(one) for one in numpy_helper.to_array(given).reshape(-1)]
