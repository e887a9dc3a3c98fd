"""Write an Einsum of two operands as a MatMul, whose cost is counted and whose batch is followed.

``ncp,nop->nc``: axes that one operand alone has, and the output has not, are summed; then both are
turned to [shared axes, own axis, axis that is summed over], and multiplied. Anything else stays
what it is, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from edgeclean.load.onnx.graph import replace_nodes_

_PLAIN = re.compile(r"([A-Za-z]{1,6}),([A-Za-z]{1,6})->([A-Za-z]{1,6})")
AXES_AS_INPUT = 13  # opset from which Squeeze, Unsqueeze and ReduceSum take axes so


@dataclass(frozen=True, slots=True)
class Product:
    """What a plain equation asks for, each axis by its letter.

    Attributes:
        operands: the letters of both operands, in the order in which they are multiplied.
        swapped: whether that is not the order of the node's inputs.
        shared: the letters of both and of the output.
        left: those of the first and the output; several only where none is shared.
        right: those of the second and the output, one at most.
        summed: those of both alone, one at most.
        output: those of the output.
    """

    operands: tuple[str, str]
    swapped: bool
    shared: str
    left: str
    right: str
    summed: str
    output: str


def product_of(node: NodeProto) -> Product | None:
    """Return what an Einsum asks for, or None where no MatMul computes it."""
    given = [one.s for one in node.attribute if one.name == "equation"]
    text = given[0].decode("ascii", "replace").replace(" ", "") if len(given) == 1 else ""
    match = _PLAIN.fullmatch(text)
    if match is None or len(node.input) != 2 or len(node.output) != 1:
        return None
    first, second, output = match.groups()
    if any(len(set(one)) != len(one) for one in (first, second, output)):
        return None
    if not set(output) <= {*first, *second}:
        return None
    shared = "".join(one for one in output if one in first and one in second)
    own = ["".join(c for c in one if c in output and c not in shared) for one in (first, second)]
    summed = "".join(one for one in first if one in second and one not in output)
    swapped = len(own[1]) > 1
    left, right = reversed(own) if swapped else own
    if len(right) > 1 or len(summed) > 1 or (shared and len(left) > 1):
        return None
    operands = (second, first) if swapped else (first, second)
    return Product(operands, swapped, shared, left, right, summed, output)


def without_einsums_(graph: GraphProto, opset: int) -> str:
    """Write each Einsum that is a product of matrices as one.

    Args:
        graph: whose nodes are changed.
        opset: the version of its operators.

    Returns:
        What was done, in a few words, or "".
    """
    writer = _Writer(graph, opset)
    nodes: list[NodeProto] = []
    found = 0
    for node in graph.node:
        product = product_of(node) if node.op_type == "Einsum" else None
        found += product is not None
        nodes += [node] if product is None else writer.written(node, product)
    if found:
        replace_nodes_(graph, nodes)
    return "Einsum is read as MatMul" if found else ""


class _Writer:
    """Writes chains of nodes, with names that the graph has not."""

    def __init__(self, graph: GraphProto, opset: int) -> None:
        self._graph = graph
        self._opset = opset
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= {one.name for one in (*graph.initializer, *graph.input)}
        self._nodes: list[NodeProto] = []

    def written(self, node: NodeProto, product: Product) -> list[NodeProto]:
        """Return the nodes of one product."""
        self._nodes = []
        inputs = list(reversed(node.input)) if product.swapped else list(node.input)
        before = len(product.shared)
        left = self._turned(
            inputs[0], product.operands[0], product.shared + product.left + product.summed
        )
        right = self._turned(
            inputs[1], product.operands[1], product.shared + product.summed + product.right
        )
        if not product.left:
            left = self._over("Unsqueeze", left, [before])
        if not product.summed:
            left = self._over("Unsqueeze", left, [before + max(1, len(product.left))])
            right = self._over("Unsqueeze", right, [before])
        if not product.right:
            right = self._over("Unsqueeze", right, [before + 1])
        value = self._add("MatMul", [left, right])
        last = before + max(1, len(product.left))
        dropped = [before] * (not product.left) + [last] * (not product.right)
        if dropped:
            value = self._over("Squeeze", value, dropped)
        letters = product.shared + product.left + product.right
        order = [letters.index(one) for one in product.output]
        self._nodes.append(
            helper.make_node("Transpose", [value], node.output, node.name, perm=order)
        )
        return self._nodes

    def _turned(self, name: str, letters: str, wanted: str) -> str:
        """Return a value of the wanted axes in their order; all others are summed over."""
        summed = [axis for axis, one in enumerate(letters) if one not in wanted]
        if summed:
            name = self._over("ReduceSum", name, summed, keepdims=0)
            letters = "".join(one for one in letters if one in wanted)
        order = [letters.index(one) for one in wanted]
        return self._add("Transpose", [name], perm=order)

    def _over(self, kind: str, name: str, axes: Sequence[int], **attributes: int) -> str:
        if self._opset < AXES_AS_INPUT:
            return self._add(kind, [name], axes=list(axes), **attributes)
        listed = self._new()
        self._graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), listed))
        return self._add(kind, [name, listed], **attributes)

    def _add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = self._new()
        self._nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def _new(self) -> str:
        number = len(self._taken)
        while f"product/{number}" in self._taken:
            number += 1
        self._taken.add(f"product/{number}")
        return f"product/{number}"
