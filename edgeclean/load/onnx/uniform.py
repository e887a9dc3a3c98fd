"""Weights that are one number over and over, which a graph names by shape alone (ConstantOfShape).

Folded, they would take gigabytes that the file has not. So the simplifier is shown an input of
their shape in their place, and the importer fills them in, counted beside all other weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.graph import node_label, own_opset
from edgeclean.load.onnx.writer import GraphWriter

SMALLEST_HELD = 2**12  # numbers; what has fewer is folded with the rest
# Where weights stand that nothing is folded into.
PLACES = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (0, 1)}


def uniform_shape(node: NodeProto, constants: Mapping[str, TensorProto]) -> tuple[int, ...] | None:
    """Return the shape of a ConstantOfShape, or None where it is computed.

    Raises:
        InputRejectedError: the shape is no list of whole numbers from zero.
    """
    tensor = constants.get(node.input[0]) if node.input else None
    if tensor is None:
        return None
    try:
        shape = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise InputRejectedError(f"{node_label(node)}: its shape is damaged ({error})") from None
    if shape.dtype != np.int64 or shape.ndim != 1 or shape.size > 8 or (shape < 0).any():
        raise InputRejectedError(f"{node_label(node)}: its shape must be sides from zero")
    return tuple(int(side) for side in shape)


def hold_(graph: GraphProto) -> dict[str, NodeProto]:
    """Put inputs in the place of large uniform weights; return their nodes by name."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    elsewhere = {one.name for one in graph.output}
    for node in graph.node:
        places = PLACES.get(node.op_type, ())
        elsewhere |= {name for place, name in enumerate(node.input) if place not in places}
    held: dict[str, NodeProto] = {}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.op_type != "ConstantOfShape" or node.output[0] in elsewhere:
            continue
        shape = uniform_shape(node, constants)
        if shape is None or math.prod(shape) < SMALLEST_HELD or kind_of(node) != TensorProto.FLOAT:
            continue
        name = node.output[0]
        held[name] = NodeProto.FromString(node.SerializeToString())
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        del graph.node[index]
        graph.input.append(value)
    return held


def release_(model: ModelProto, held: Mapping[str, NodeProto]) -> None:
    """Put the weights that `hold_` took out back, as they were."""
    graph = model.graph
    writer = GraphWriter(graph, own_opset(model))
    for index in reversed(range(len(graph.input))):
        value = graph.input[index]
        if value.name in held:
            node = held[value.name]
            sides = [one.dim_value for one in value.type.tensor_type.shape.dim]
            node.input[0] = writer.constant(sides, value.name)
            graph.node.insert(0, node)
            del graph.input[index]


def fill_number(node: NodeProto) -> float:
    """Return the number that a ConstantOfShape of float32 repeats."""
    for one in node.attribute:
        if one.name == "value":
            return float(numpy_helper.to_array(one.t).reshape(-1)[0])
    return 0.0


def kind_of(node: NodeProto) -> int:
    """Return the element type of a ConstantOfShape."""
    kinds = [one.t.data_type for one in node.attribute if one.name == "value"]
    return kinds[0] if kinds else TensorProto.FLOAT
