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

from onnx import GraphProto, NodeProto, helper

from edgeclean.load.onnx.graph import replace_nodes_
from edgeclean.load.onnx.writer import GraphWriter

_PLAIN = re.compile(r"([A-Za-z]{1,6}),([A-Za-z]{1,6})->([A-Za-z]{1,6})")


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
    writer = GraphWriter(graph, opset)
    found = 0
    for node in graph.node:
        product = product_of(node) if node.op_type == "Einsum" else None
        if product is None:
            writer.nodes.append(node)
        else:
            _write(writer, node, product)
            found += 1
    if found:
        replace_nodes_(graph, writer.nodes)
    return "Einsum is read as MatMul" if found else ""


def _write(writer: GraphWriter, node: NodeProto, product: Product) -> None:
    """Write the nodes of one product."""
    first, second = reversed(node.input) if product.swapped else node.input
    shared, summed = product.shared, product.summed
    before = len(shared)
    left = _turned(writer, first, product.operands[0], shared + product.left + summed)
    right = _turned(writer, second, product.operands[1], shared + summed + product.right)
    last = before + max(1, len(product.left))
    if not product.left:
        left = _add(writer, "Unsqueeze", [left], [before])
    if not summed:
        left = _add(writer, "Unsqueeze", [left], [last])
        right = _add(writer, "Unsqueeze", [right], [before])
    if not product.right:
        right = _add(writer, "Unsqueeze", [right], [before + 1])
    value = _add(writer, "MatMul", [left, right])
    dropped = [before] * (not product.left) + [last] * (not product.right)
    if dropped:
        value = _add(writer, "Squeeze", [value], dropped)
    letters = shared + product.left + product.right
    order = [letters.index(one) for one in product.output]
    writer.add("Transpose", [value], node.output[0], node.name, perm=order)


def _turned(writer: GraphWriter, name: str, letters: str, wanted: str) -> str:
    """Return a value of the wanted axes in their order; all others are summed over."""
    summed = [axis for axis, one in enumerate(letters) if one not in wanted]
    if summed:
        name = _add(writer, "ReduceSum", [name], summed, keepdims=0)
        letters = "".join(one for one in letters if one in wanted)
    order = [letters.index(one) for one in wanted]
    return _add(writer, "Transpose", [name], perm=order)


def _add(
    writer: GraphWriter, kind: str, inputs: list[str], axes: Sequence[int] = (), **attributes: Any
) -> str:
    node = helper.make_node(kind, inputs, [], **attributes)
    if axes:
        writer.set_axes(node, axes, "product")
    node.name = writer.name("product")
    node.output.append(node.name)
    writer.nodes.append(node)
    return node.name
