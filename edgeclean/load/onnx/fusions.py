"""ONNX Runtime's fused operators, as saved in optimised graphs, written as ONNX's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.graph import node_label, replace_nodes_
from edgeclean.load.onnx.writer import GraphWriter

MICROSOFT = "com.microsoft"


def without_fusions_(graph: GraphProto, opset: int) -> str:
    """Replace the fused operators, in place.

    Returns:
        What was done, in a few words; "" where there are none.

    Raises:
        InputRejectedError: one of them has a form that is not read.
    """
    fused = [node for node in graph.node if node.domain == MICROSOFT]
    if not fused:
        return ""
    writer = GraphWriter(graph, opset)
    for node in graph.node:
        if node.domain != MICROSOFT:
            writer.nodes.append(node)
            continue
        start = len(writer.nodes)
        FUSIONS[node.op_type](writer, node)
        writer.nodes[start].name = node.name
        writer.nodes[-1].output[0] = node.output[0]
    replace_nodes_(graph, writer.nodes)
    return f"{len(fused)} fused operators of {MICROSOFT} are written as ONNX's own"


def _step(
    writer: GraphWriter, node: NodeProto, kind: str, *inputs: str | float, **attributes: Any
) -> str:
    """Write an operator on values and numbers; return its output, named after the fused one's."""
    base = node.output[0]
    names = [
        one if isinstance(one, str) else writer.constant(np.array(one, np.float32), base)
        for one in inputs
    ]
    return writer.add(kind, names, writer.name(base), **attributes)


def _fused_layer(writer: GraphWriter, node: NodeProto) -> None:
    """FusedConv and FusedGemm: the layer, perhaps a sum, and an activation."""
    kept = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    own = {name: value for name, value in kept.items() if not name.startswith("activation")}
    value = _step(writer, node, node.op_type.removeprefix("Fused"), *node.input[:3], **own)
    if len(node.input) > 3 and node.input[3]:
        value = _step(writer, node, "Add", value, node.input[3])
    kind = kept.get("activation", b"").decode("ascii", "replace")
    numbers = [float(one) for one in kept.get("activation_params", [])]
    numbers += [kept[one] for one in ("activation_alpha", "activation_beta") if one in kept]
    places = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",)}
    if kind in ("Relu", "Tanh", "Sigmoid"):
        _step(writer, node, kind, value)
    elif kind in places:
        _step(writer, node, kind, value, **dict(zip(places[kind], numbers, strict=False)))
    elif kind == "Clip" and len(numbers) == 2:
        writer.clip(value, numbers[0], numbers[1], writer.name(node.output[0]))
    elif kind:
        raise InputRejectedError(
            f"{node_label(node)}: the fused activation {kind[:40]!r} is not read; save the "
            "network without ONNX Runtime's optimisations"
        )


def _biased(writer: GraphWriter, node: NodeProto) -> str:
    """Return the first input, plus the second where there is one."""
    value, *bias = filter(None, node.input[:2])
    return _step(writer, node, "Add", value, *bias) if bias else value


def _gelu(writer: GraphWriter, node: NodeProto) -> None:
    """Gelu and BiasGelu: x / 2 * (1 + erf(x / sqrt(2)))."""
    x = _biased(writer, node)
    value = _step(writer, node, "Mul", x, math.sqrt(0.5))
    value = _step(writer, node, "Erf", value)
    value = _step(writer, node, "Add", value, 1.0)
    value = _step(writer, node, "Mul", value, x)
    _step(writer, node, "Mul", value, 0.5)


def _fast_gelu(writer: GraphWriter, node: NodeProto) -> None:
    """FastGelu: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x ** 3)))."""
    x = _biased(writer, node)
    value = _step(writer, node, "Mul", x, x)
    value = _step(writer, node, "Mul", value, 0.044715)
    value = _step(writer, node, "Add", value, 1.0)
    value = _step(writer, node, "Mul", value, x)
    value = _step(writer, node, "Mul", value, math.sqrt(2 / math.pi))
    value = _step(writer, node, "Tanh", value)
    value = _step(writer, node, "Add", value, 1.0)
    value = _step(writer, node, "Mul", value, x)
    _step(writer, node, "Mul", value, 0.5)


def _quick_gelu(writer: GraphWriter, node: NodeProto) -> None:
    """QuickGelu: x * sigmoid(alpha * x)."""
    alpha = next((one.f for one in node.attribute if one.name == "alpha"), 1.702)
    x = node.input[0]
    value = _step(writer, node, "Mul", x, alpha)
    value = _step(writer, node, "Sigmoid", value)
    _step(writer, node, "Mul", x, value)


FUSIONS: dict[str, Callable[[GraphWriter, NodeProto], None]] = {
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_layer,
    "FusedGemm": _fused_layer,
    "Gelu": _gelu,
    "QuickGelu": _quick_gelu,
}
