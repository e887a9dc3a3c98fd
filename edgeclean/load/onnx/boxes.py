"""ScatterND that writes a box into a value, as ``out[:, :8] += x`` in code, by Slice and Concat.

Its indices are constants, and all of them together are a range of each axis: what lies before and
behind the range is kept, and what is written stands between. No layer writes at single places.
"""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from edgeclean.load.onnx.graph import prune_, replace_nodes_, shape_of
from edgeclean.load.onnx.lift import own_opset
from edgeclean.load.onnx.shape_numbers import Numbers

Shape = tuple[int, ...]
Range = tuple[int, int, int]  # an axis, and where on it a box begins and ends
SLICE_BY_INPUTS = 10  # opset from which a Slice's bounds are inputs


def write_boxes_(model: ModelProto) -> bool:
    """Put Slice and Concat in place of each ScatterND that writes a box; whether there was one.

    Args:
        model: simplified, with the shapes of its values; it is changed.
    """
    graph = model.graph
    if own_opset(model) < SLICE_BY_INPUTS:
        return False
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    constants |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    known = [*graph.value_info, *graph.input]
    shapes: dict[str, Shape] = {one.name: shape_of(one) for one in known}
    shapes |= {name: numbers.shape for name, numbers in constants.items()}
    writer = _Writer(graph, constants)
    nodes: list[NodeProto] = []
    changed = False
    for node in graph.node:
        box = _box(node, constants, shapes) if node.op_type == "ScatterND" else None
        if box is None:
            nodes.append(node)
            continue
        changed = True
        nodes += writer.written(node, shapes[node.input[0]], box)
    if changed:
        replace_nodes_(graph, nodes)
        prune_(graph)
    return changed


def _box(
    node: NodeProto, constants: dict[str, Numbers], shapes: dict[str, Shape]
) -> list[Range] | None:
    """Return the ranges that a node writes, of those axes that it does not write whole."""
    value, indices, updates = node.input
    shape, places = shapes.get(value, ()), constants.get(indices)
    plain = not any(one.name == "reduction" and one.s != b"none" for one in node.attribute)
    if not shape or min(shape) <= 0 or places is None or not places.size or not plain:
        return None
    depth = places.shape[-1]
    places = np.where(places < 0, places + np.array(shape[:depth]), places)
    rows = places.reshape(-1, depth)
    low, high = rows.min(0), rows.max(0) + 1
    sizes = tuple((high - low).tolist())
    if places.shape[:-1] != sizes or shapes.get(updates) != (*sizes, *shape[depth:]):
        return None
    if not np.array_equal(places, np.moveaxis(np.indices(sizes), 0, -1) + low):
        return None
    if low[0] != 0 or high[0] != shape[0]:  # single images of a batch
        return None
    bounds = zip(range(depth), low.tolist(), high.tolist(), strict=True)
    return [one for one in bounds if one[1:] != (0, shape[one[0]])]


class _Writer:
    """Writes the nodes of boxes, under names that the graph does not have."""

    def __init__(self, graph: GraphProto, constants: dict[str, Numbers]) -> None:
        self._graph, self._constants = graph, constants
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= {one.name for one in (*graph.initializer, *graph.input)}
        self._nodes: list[NodeProto] = []
        self._shape: Shape = ()

    def written(self, node: NodeProto, shape: Shape, box: list[Range]) -> list[NodeProto]:
        """Return the nodes whose last makes what the ScatterND into this shape would."""
        self._nodes, self._shape = [], shape
        value, _, updates = node.input
        made = self._put(value, updates, box)
        self._nodes.append(helper.make_node("Identity", [made], [node.output[0]], name=node.name))
        return self._nodes

    def _put(self, value: str, updates: str, box: list[Range]) -> str:
        if not box:
            return updates
        (axis, low, high), *inner = box
        middle = self._cut(value, axis, low, high) if inner else ""
        parts = [self._put(middle, updates, inner)]
        if low > 0:
            parts.insert(0, self._cut(value, axis, 0, low))
        if high < self._shape[axis]:
            parts.append(self._cut(value, axis, high, self._shape[axis]))
        name = self._name("box")
        self._nodes.append(helper.make_node("Concat", parts, [name], axis=axis))
        return name

    def _cut(self, value: str, axis: int, low: int, high: int) -> str:
        if value in self._constants:
            return self._constant(self._constants[value].take(range(low, high), axis=axis))
        bounds = [self._constant(np.array([one])) for one in (low, high, axis)]
        name = self._name("cut")
        self._nodes.append(helper.make_node("Slice", [value, *bounds], [name]))
        return name

    def _constant(self, numbers: Numbers) -> str:
        name = self._name("box_constant")
        self._graph.initializer.append(numpy_helper.from_array(numbers, name))
        self._constants[name] = numbers
        return name

    def _name(self, wanted: str) -> str:
        number = len(self._taken)
        while (name := f"{wanted}_{number}") in self._taken:
            number += 1
        self._taken.add(name)
        return name
