"""Take the one branch of an ``If`` whose condition the shapes alone decide.

PyTorch's older exporter writes ``if input.numel() == 0`` and ``squeeze`` of an axis so. The branch
becomes a part of the graph and goes through every check of it; the other is dropped, as no runtime
would ever run it. A condition that depends on the image leaves the ``If``, which is refused.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper

from edgeclean.load.onnx.graph import OWN_DOMAINS, is_external, names_of, own_opset, replace_nodes_
from edgeclean.load.onnx.shape_numbers import ShapeNumbers
from edgeclean.load.onnx.writer import GraphWriter

MOST_BRANCHES = 64  # for each, the shapes are inferred anew


def take_branches_(model: ModelProto) -> None:
    """Put the branch that is taken for one image in the place of each ``If`` that shapes decide.

    Args:
        model: as it came, but for its size not yet checked; it is changed.
    """
    for _ in range(MOST_BRANCHES):
        if not any(node.op_type == "If" for node in model.graph.node):
            return
        try:
            known = _known_of(model)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - native code raises many kinds on hostile graphs
            return
        if not _take_first(model.graph, known):
            return


def _known_of(model: ModelProto) -> ShapeNumbers:
    """Return what is known of the numbers for one image, or for as many as the file fixes."""
    one = ModelProto.FromString(model.SerializeToString())
    for value in one.graph.input:
        sides = value.type.tensor_type.shape.dim
        if sides and not sides[0].dim_value:
            sides[0].dim_value = 1
    for _ in range(MOST_BRANCHES):
        known = ShapeNumbers(onnx.shape_inference.infer_shapes(one))
        if not _fix_sides_(one, known):
            break
    return known


def _fix_sides_(model: ModelProto, known: ShapeNumbers) -> bool:
    """Give Pads and Reshapes whose numbers are computed these as constants, to infer shapes by."""
    writer = GraphWriter(model.graph, own_opset(model))
    fixed: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in ("Pad", "Reshape") and len(node.input) > 1:
            given = node.input[1]
            read = known.sides if node.op_type == "Reshape" else known.of
            numbers = None if given in known.constants else read(given)
            if numbers is not None and numbers.dtype == np.int64 and (numbers >= -1).all():
                fixed[given] = fixed.get(given) or writer.constant(numbers, given)
                node.input[1] = fixed[given]
    return bool(fixed)


def _take_first(graph: GraphProto, known: ShapeNumbers) -> bool:
    """Take the branch of the first ``If`` that has one; return whether there is such an ``If``."""
    for place, node in enumerate(graph.node):
        if node.op_type != "If" or node.domain not in OWN_DOMAINS or len(node.input) != 1:
            continue
        decided = known.of(node.input[0])
        if decided is None or decided.size != 1 or decided.dtype != np.bool_:
            continue
        wanted = "then_branch" if bool(decided.reshape(-1)[0]) else "else_branch"
        branches = [one.g for one in node.attribute if one.name == wanted]
        body = _body(graph, node, branches[0]) if len(branches) == 1 else None
        if body is not None:
            replace_nodes_(graph, [*graph.node[:place], *body, *graph.node[place + 1 :]])
            return True
    return False


def _body(graph: GraphProto, node: NodeProto, branch: GraphProto) -> list[NodeProto] | None:
    """Return a branch's nodes, which make the outputs of the ``If``.

    None where it has more, or keeps numbers in other files: those were looked for before.
    """
    own = [name for one in branch.node for name in one.output if name]
    if (
        branch.initializer
        or branch.sparse_initializer
        or branch.input
        or len(branch.output) != len(node.output)
        or len(set(own)) != len(own)
        or names_of(graph).intersection(own)
        or any(is_external(one.t) for inner in branch.node for one in inner.attribute)
    ):
        return None
    ends = [
        helper.make_node("Identity", [inner.name], [outer], f"{node.name}/{outer}")
        for inner, outer in zip(branch.output, node.output, strict=True)
        if outer
    ]
    return [*branch.node, *ends]
