"""ScatterND that writes a box into a value, as ``out[:, :8] += x`` in code, by Slice and Concat.

Its indices are constants, and all of them together are a range of each axis: what lies before and
behind the range is kept, and what is written stands between. No layer writes at single places.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgeclean.load.onnx.graph import own_opset, prune_, replace_nodes_, shape_of
from edgeclean.load.onnx.writer import GraphWriter

Shape = tuple[int, ...]
Range = tuple[int, int, int]  # an axis, and where on it a box begins and ends


def write_boxes_(model: ModelProto) -> bool:
    """Put Slice and Concat in place of each ScatterND that writes a box; whether there was one.

    Args:
        model: simplified, with the shapes of its values; it is changed.
    """
    graph = model.graph
    writer = GraphWriter(graph, own_opset(model))
    known = [*graph.value_info, *graph.input]
    shapes: dict[str, Shape] = {one.name: shape_of(one) for one in known}
    shapes |= {name: tuple(tensor.dims) for name, tensor in writer.constants.items()}
    changed = False
    for node in graph.node:
        box = _box(node, writer.constants, shapes) if node.op_type == "ScatterND" else None
        if box is None:
            writer.nodes.append(node)
            continue
        changed = True
        value, _, updates = node.input
        made = _put(writer, shapes[value], value, updates, box)
        writer.add("Identity", [made], node.output[0], node.name)
    if changed:
        replace_nodes_(graph, writer.nodes)
        prune_(graph)
    return changed


def _box(
    node: NodeProto, constants: dict[str, TensorProto], shapes: dict[str, Shape]
) -> list[Range] | None:
    """Return the ranges that a node writes, of those axes that it does not write whole."""
    value, indices, updates = node.input
    shape, given = shapes.get(value, ()), constants.get(indices)
    plain = not any(one.name == "reduction" and one.s != b"none" for one in node.attribute)
    if not shape or min(shape) <= 0 or given is None or 0 in given.dims or not plain:
        return None
    places = numpy_helper.to_array(given)
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


def _put(writer: GraphWriter, shape: Shape, value: str, updates: str, box: list[Range]) -> str:
    """Write a value of a shape with the updates in a box of it; return its name."""
    if not box:
        return updates
    (axis, low, high), *inner = box
    middle = _cut(writer, value, axis, low, high) if inner else ""
    parts = [_put(writer, shape, middle, updates, inner)]
    if low > 0:
        parts.insert(0, _cut(writer, value, axis, 0, low))
    if high < shape[axis]:
        parts.append(_cut(writer, value, axis, high, shape[axis]))
    return writer.add("Concat", parts, writer.name("box"), axis=axis)


def _cut(writer: GraphWriter, value: str, axis: int, low: int, high: int) -> str:
    if value in writer.constants:
        numbers = numpy_helper.to_array(writer.constants[value])
        return writer.constant(numbers.take(range(low, high), axis=axis), "box")
    bounds = [writer.constant([one], "box") for one in (low, high, axis)]
    return writer.add("Slice", [value, *bounds], writer.name("cut"))
