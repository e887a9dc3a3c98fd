"""ONNX Runtime's fused operators, as saved in optimised graphs, written as ONNX's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.graph import node_label, replace_nodes_

MICROSOFT = "com.microsoft"
Part = tuple[str, list[Any], dict[str, Any]]  # operator, inputs, attributes; see `_Writer.chain`


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
    writer = _Writer(opset)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += FUSIONS[node.op_type](writer, node) if node.domain == MICROSOFT else [node]
    replace_nodes_(graph, nodes)
    return f"{len(fused)} fused operators of {MICROSOFT} are written as ONNX's own"


class _Writer:
    """Makes nodes one after another; values between them are named after the fused one's output."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.made = 0

    def name(self, node: NodeProto) -> str:
        self.made += 1
        return f"{node.output[0]}/fused{self.made}"

    def chain(self, node: NodeProto, steps: list[Part]) -> list[NodeProto]:
        """Return nodes that end in the fused one's output.

        A whole number among a step's inputs is the value of the step of that number, a fraction a
        constant, a text a value of the graph.
        """
        nodes: list[NodeProto] = []
        values: list[str] = []
        for index, (kind, inputs, attributes) in enumerate(steps):
            names = []
            for one in inputs:
                if isinstance(one, float):
                    name = self.name(node)
                    tensor = numpy_helper.from_array(np.asarray(one, np.float32))
                    nodes.append(helper.make_node("Constant", [], [name], value=tensor))
                    names.append(name)
                else:
                    names.append(values[one] if isinstance(one, int) else one)
            last = index == len(steps) - 1
            values.append(node.output[0] if last else self.name(node))
            nodes.append(
                helper.make_node(
                    kind, names, [values[-1]], "" if index else node.name, **attributes
                )
            )
        return nodes


def _fused_layer(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """FusedConv and FusedGemm: the layer, perhaps a sum, and an activation."""
    kept = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    own = {name: value for name, value in kept.items() if not name.startswith("activation")}
    inputs = [name for name in node.input[:3]]
    steps: list[Part] = [(node.op_type.removeprefix("Fused"), inputs, own)]
    if len(node.input) > 3 and node.input[3]:
        steps.append(("Add", [0, node.input[3]], {}))
    kind = kept.get("activation", b"").decode("ascii", "replace")
    numbers = [float(one) for one in kept.get("activation_params", [])]
    numbers += [kept[one] for one in ("activation_alpha", "activation_beta") if one in kept]
    places = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",)}
    last = len(steps) - 1
    if kind in ("Relu", "Tanh", "Sigmoid"):
        steps.append((kind, [last], {}))
    elif kind in places:
        steps.append((kind, [last], dict(zip(places[kind], numbers, strict=False))))
    elif kind == "Clip" and len(numbers) == 2:
        bounds = {"min": numbers[0], "max": numbers[1]}
        new = writer.opset >= 11
        steps.append((kind, [last, *numbers] if new else [last], {} if new else bounds))
    elif kind:
        raise InputRejectedError(
            f"{node_label(node)}: the fused activation {kind[:40]!r} is not read; save the "
            "network without ONNX Runtime's optimisations"
        )
    return writer.chain(node, steps)


def _gelu(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """Gelu and BiasGelu: x / 2 * (1 + erf(x / sqrt(2)))."""
    biased = len(node.input) > 1 and node.input[1] != ""
    x: int | str = 0 if biased else node.input[0]
    first: list[Part] = [("Add", [node.input[0], node.input[1]], {})] if biased else []
    at = len(first)
    return writer.chain(
        node,
        [
            *first,
            ("Mul", [x, math.sqrt(0.5)], {}),
            ("Erf", [at], {}),
            ("Add", [at + 1, 1.0], {}),
            ("Mul", [at + 2, x], {}),
            ("Mul", [at + 3, 0.5], {}),
        ],
    )


def _fast_gelu(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """FastGelu: x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x ** 3)))."""
    biased = len(node.input) > 1 and node.input[1] != ""
    x: int | str = 0 if biased else node.input[0]
    first: list[Part] = [("Add", [node.input[0], node.input[1]], {})] if biased else []
    at = len(first)
    return writer.chain(
        node,
        [
            *first,
            ("Mul", [x, x], {}),
            ("Mul", [at, 0.044715], {}),
            ("Add", [at + 1, 1.0], {}),
            ("Mul", [at + 2, x], {}),
            ("Mul", [at + 3, math.sqrt(2 / math.pi)], {}),
            ("Tanh", [at + 4], {}),
            ("Add", [at + 5, 1.0], {}),
            ("Mul", [at + 6, x], {}),
            ("Mul", [at + 7, 0.5], {}),
        ],
    )


def _quick_gelu(writer: _Writer, node: NodeProto) -> list[NodeProto]:
    """QuickGelu: x * sigmoid(alpha * x)."""
    alpha = next((one.f for one in node.attribute if one.name == "alpha"), 1.702)
    x = node.input[0]
    return writer.chain(
        node, [("Mul", [x, float(alpha)], {}), ("Sigmoid", [0], {}), ("Mul", [x, 1], {})]
    )


FUSIONS: dict[str, Callable[[_Writer, NodeProto], list[NodeProto]]] = {
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_layer,
    "FusedGemm": _fused_layer,
    "Gelu": _gelu,
    "QuickGelu": _quick_gelu,
}
