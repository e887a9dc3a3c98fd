"""Take the one branch of an ``If`` whose condition the shapes alone decide.

PyTorch's older exporter writes ``if input.numel() == 0`` and ``squeeze`` of an axis so. The branch
becomes a part of the graph and goes through every check of it; the other is dropped, as no runtime
would ever run it. A condition that depends on the image leaves the ``If``, which is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeclean.load.onnx.graph import OWN_DOMAINS, replace_nodes_, shape_of

MOST_BRANCHES = 64  # for each, the shapes are inferred anew
MOST_STEPS = 16  # from a shape to a condition
MOST_NUMBERS = 64  # of a shape, or what is computed from one

_COMPUTED: Mapping[str, Callable[..., np.ndarray]] = {
    "And": np.logical_and,
    "Equal": np.equal,
    "Greater": np.greater,
    "Identity": lambda number: number,
    "Less": np.less,
    "Mul": np.multiply,
    "Not": np.logical_not,
    "Or": np.logical_or,
}


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


def _known_of(model: ModelProto) -> _Known:
    """Return what is known of the numbers for one image, or for as many as the file fixes."""
    one = ModelProto.FromString(model.SerializeToString())
    for value in one.graph.input:
        sides = value.type.tensor_type.shape.dim
        if sides and not sides[0].dim_value:
            sides[0].dim_value = 1
    fixed: set[str] = set()
    for _ in range(MOST_BRANCHES):
        known = _Known(onnx.shape_inference.infer_shapes(one).graph)
        if not _fix_sides_(one.graph, known, fixed):
            break
    return known


def _fix_sides_(graph: GraphProto, known: _Known, fixed: set[str]) -> bool:
    """Give Pads and Reshapes whose numbers are computed these as constants, to infer shapes by."""
    before = len(fixed)
    for node in graph.node:
        if node.op_type in ("Pad", "Reshape") and len(node.input) > 1:
            numbers = None if node.input[1] in known.constants else known.value(node.input[1])
            name = f"{node.input[1]}/known"
            if numbers is not None and numbers.dtype == np.int64 and (numbers >= -1).all():
                if name not in fixed:
                    graph.initializer.append(numpy_helper.from_array(numbers, name))
                    fixed.add(name)
                node.input[1] = name
    return len(fixed) > before


def _take_first(graph: GraphProto, known: _Known) -> bool:
    """Take the branch of the first ``If`` that has one; return whether there is such an ``If``."""
    for place, node in enumerate(graph.node):
        if node.op_type != "If" or node.domain not in OWN_DOMAINS or len(node.input) != 1:
            continue
        decided = known.value(node.input[0])
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
    """Return a branch's nodes, which make the outputs of the ``If``; None where it has more."""
    taken = {name for one in graph.node for name in (*one.input, *one.output)}
    taken |= {one.name for one in (*graph.initializer, *graph.input)}
    own = [name for one in branch.node for name in one.output if name]
    if (
        branch.initializer
        or branch.sparse_initializer
        or branch.input
        or len(branch.output) != len(node.output)
        or len(set(own)) != len(own)
        or taken.intersection(own)
    ):
        return None
    ends = [
        helper.make_node("Identity", [inner.name], [outer], f"{node.name}/{outer}")
        for inner, outer in zip(branch.output, node.output, strict=True)
        if outer
    ]
    return [*branch.node, *ends]


class _Known:
    """Small numbers of a graph that its constants and fixed shapes decide."""

    def __init__(self, graph: GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self.constants = {one.name: one for one in graph.initializer}
        known = [*graph.value_info, *graph.input, *graph.output]
        self._shapes = {
            one.name: shape_of(one) for one in known if one.type.tensor_type.HasField("shape")
        }

    def value(self, name: str, steps: int = MOST_STEPS) -> np.ndarray | None:
        """Return the numbers of a value, or None where they are not known."""
        if name in self.constants:
            return _small(self.constants[name])
        node = self._makers.get(name)
        if node is None or not steps or node.domain not in OWN_DOMAINS:
            return None
        kind = node.op_type
        attributes = {one.name: one for one in node.attribute}
        if kind == "Constant":
            return _small(attributes["value"].t) if "value" in attributes else None
        if kind in ("Shape", "Size"):
            shape = self._shapes.get(node.input[0]) if not attributes else None
            if shape is None:
                return None
            if kind == "Shape":
                return np.array([side or -1 for side in shape], np.int64)
            return np.array(np.prod(shape, dtype=object)) if all(shape) else None
        inputs = [self.value(one, steps - 1) for one in node.input if one]
        if not inputs or any(one is None for one in inputs):
            return None
        return _computed(kind, attributes, [one for one in inputs if one is not None])


def _computed(
    kind: str, attributes: Mapping[str, onnx.AttributeProto], inputs: list[np.ndarray]
) -> np.ndarray | None:
    """Return what a node makes of known numbers; nothing is made of a side that is free, -1."""
    whole = {name: [int(one) for one in given.ints] for name, given in attributes.items()}
    first = inputs[0]
    try:
        if kind == "Gather" and first.ndim == 1:
            made = np.asarray(np.take(first, inputs[1].astype(np.int64)))
        elif kind in ("Squeeze", "Unsqueeze") and first.size == 1:
            made = first.reshape(1)
        elif kind == "Reshape" and inputs[1].size <= 2:
            made = first.reshape([int(one) for one in inputs[1].reshape(-1)])
        elif kind == "Transpose":
            made = first.transpose(whole.get("perm"))
        elif kind == "Slice" and all(one.size == 1 for one in inputs[1:]) and len(inputs) == 5:
            start, end, axis, step = (int(one.reshape(-1)[0]) for one in inputs[1:])
            cut = slice(start, None if end < -MOST_NUMBERS else end, step)
            made = first[(slice(None),) * (axis % first.ndim) + (cut,)]
        elif kind == "ConstantOfShape" and first.size == 1 and 0 <= first.sum() <= MOST_NUMBERS:
            given = numpy_helper.to_array(attributes["value"].t).reshape(-1)[:1]
            made = np.tile(given, int(first.sum()))
        elif kind == "Concat" and all(one.ndim == 1 for one in inputs):
            made = np.concatenate(inputs)
        elif any((one < 0).any() for one in inputs):
            return None
        elif kind == "Cast":
            made = first.astype(helper.tensor_dtype_to_np_dtype(attributes["to"].i))
        elif kind in _COMPUTED:
            made = np.asarray(_COMPUTED[kind](*inputs))
        else:
            return None
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None
    return made if made.size <= MOST_NUMBERS else None


def _small(tensor: TensorProto) -> np.ndarray | None:
    """Return the numbers of a small constant in the file itself."""
    if (
        tensor.external_data
        or len(tensor.dims) > 1
        or any(one > MOST_NUMBERS for one in tensor.dims)
    ):
        return None
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (TypeError, ValueError):
        return None
