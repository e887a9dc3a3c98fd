"""The few numbers that a graph computes of the shapes of its values, such as where a Range ends.

ONNX's own inference follows them through Gather and Add, yet not behind a Cast or a Mul of many
spellings, and then what they decide would have no bound. Here each node is computed by ONNX's
reference on at most `MOST` numbers; what hangs on an image's content is unknown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeclean.load.onnx.graph import shape_of
from edgeclean.load.onnx.lift import own_opset

Numbers = np.ndarray[Any, np.dtype[Any]]
MOST = 64  # numbers of a value
MOST_DEPTH = 200  # nodes behind each other
# Of few numbers these make few: none repeats, pads or counts up.
COMPUTED = frozenset(
    {
        *("Abs", "Add", "Cast", "Ceil", "Concat", "Constant", "Div", "Floor", "Gather", "Identity"),
        *("Max", "Min", "Mod", "Mul", "Neg", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
        *("Reshape", "Round", "Slice", "Sqrt", "Squeeze", "Sub", "Unsqueeze"),
    }
)


class ShapeNumbers:
    """Computes values of a graph that hang on shapes and constants alone."""

    def __init__(self, inferred: ModelProto) -> None:
        """Take a model with the shapes of its values."""
        graph = inferred.graph
        known = [*graph.value_info, *graph.input, *graph.output]
        self._shapes = {one.name: shape_of(one) for one in known}
        self._made_by = {name: node for node in graph.node for name in node.output if name}
        self._opsets = [helper.make_opsetid("", own_opset(inferred))]
        self._known: dict[str, Numbers | None] = {}
        for one in graph.initializer:
            few = np.prod(one.dims, dtype=object) <= MOST
            self._known[one.name] = numpy_helper.to_array(one) if few else None

    def of(self, name: str, depth: int = 0) -> Numbers | None:
        """Return a value; None where it hangs on images, is large, or is not followed."""
        if name not in self._known:
            node = self._made_by.get(name)
            small = node is not None and depth < MOST_DEPTH
            self._known[name] = self._made(node, depth) if small and node is not None else None
        return self._known[name]

    def _made(self, node: NodeProto, depth: int) -> Numbers | None:
        if node.op_type == "Shape":
            return self._shape(node)
        if node.op_type not in COMPUTED or len(node.output) != 1 or node.domain:
            return None
        given = {one: self.of(one, depth + 1) for one in node.input if one}
        if any(one is None for one in given.values()):
            return None
        try:
            with np.errstate(all="ignore"):
                (made,) = self._alone(node).run(None, given)
        except Exception:  # noqa: BLE001 - a node that does not fit raises what it likes
            return None
        numbers = np.asarray(made)
        return numbers if numbers.size <= MOST and numbers.dtype.kind in "biuf" else None

    def _alone(self, node: NodeProto) -> ReferenceEvaluator:
        """Return what computes a node as the file's opset has it, not as the newest."""
        given = [helper.make_empty_tensor_value_info(one) for one in node.input if one]
        made = [helper.make_empty_tensor_value_info(one) for one in node.output]
        graph = helper.make_graph([node], "alone", given, made)
        return ReferenceEvaluator(helper.make_model(graph, opset_imports=self._opsets))

    def _shape(self, node: NodeProto) -> Numbers | None:
        sides = self._shapes.get(node.input[0], ())
        if not sides or min(sides) <= 0:
            return None
        ends = {one.name: one.i for one in node.attribute}
        return np.array(sides[ends.get("start", 0) : ends.get("end", len(sides))], dtype=np.int64)
