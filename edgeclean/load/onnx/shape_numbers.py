"""The few numbers that a graph computes of the shapes of its values, such as where a Range ends.

ONNX's own inference follows them through Gather and Add, yet not behind a Cast or a Mul of many
spellings, and then what they decide would have no bound. Here each node is computed by ONNX's
reference on at most `MOST` numbers; what hangs on an image's content is unknown. A side that is
free is masked: it can be moved, and nothing is computed of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeclean.load.onnx.graph import OWN_DOMAINS, constants_of, is_external, own_opset, shape_of

Numbers = np.ndarray[Any, np.dtype[Any]]
Masked = np.ma.MaskedArray[Any, Any]
MOST = 64  # numbers of a value
MOST_DEPTH = 200  # nodes behind each other
# Those whose numbers are numbers of the first input, or of all that Concat joins.
MOVED = frozenset(
    {
        *("Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"),
        "Unsqueeze",
    }
)
POINTWISE = frozenset(
    {
        *("Abs", "Add", "And", "Cast", "Ceil", "Div", "Equal", "Floor", "Greater", "Less", "Max"),
        *("Min", "Mod", "Mul", "Neg", "Not", "Or", "Round", "Sqrt", "Sub"),
    }
)
# Of few numbers these make few, or as many as can be told before: none pads or counts up.
COMPUTED = frozenset(
    {
        *(*MOVED, *POINTWISE, "Constant", "ConstantOfShape"),
        *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
    }
)


class ShapeNumbers:
    """Computes values of a graph that hang on shapes and constants alone.

    Attributes:
        constants: what the graph holds as constants, by name.
    """

    def __init__(self, inferred: ModelProto) -> None:
        """Take a model with the shapes of its values."""
        graph = inferred.graph
        known = [*graph.value_info, *graph.input, *graph.output]
        self.constants = constants_of(graph)
        self._shapes = {
            one.name: shape_of(one) for one in known if one.type.tensor_type.HasField("shape")
        }
        self._made_by = {name: node for node in graph.node for name in node.output if name}
        self._opsets = [helper.make_opsetid("", own_opset(inferred))]
        self._known: dict[str, Masked | None] = {}

    def of(self, name: str) -> Numbers | None:
        """Return a value; None where it hangs on images, is large, or is not followed."""
        value = self._value(name, 0)
        return None if value is None or np.ma.is_masked(value) else value.data

    def sides(self, name: str) -> Numbers | None:
        """Return a value as `of` does, with -1 for each side of a shape that is free."""
        value = self._value(name, 0)
        return None if value is None else value.filled(-1)

    def _value(self, name: str, depth: int) -> Masked | None:
        if name not in self._known:
            try:
                self._known[name] = self._found(name, depth)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - a node that does not fit raises what it likes
                self._known[name] = None
        return self._known[name]

    def _found(self, name: str, depth: int) -> Masked | None:
        if name in self.constants:
            tensor = self.constants[name]
            if is_external(tensor) or math.prod(tensor.dims) > MOST:
                return None
            return np.ma.masked_array(numpy_helper.to_array(tensor))
        node = self._made_by.get(name)
        if node is None or depth >= MOST_DEPTH or node.domain not in OWN_DOMAINS:
            return None
        if node.op_type in ("Shape", "Size"):
            return self._shape(node)
        if node.op_type not in COMPUTED or len(node.output) != 1 or not _is_plain(node):
            return None
        given: dict[str, Masked] = {}
        for one in filter(None, node.input):
            value = self._value(one, depth + 1)
            if value is None:
                return None
            given[one] = value
        return self._made(node, given)

    def _made(self, node: NodeProto, given: dict[str, Masked]) -> Masked | None:
        """Return what a node makes; the mask of numbers that it moves is moved as they are."""
        free = {name for name, value in given.items() if np.ma.is_masked(value)}
        where = () if node.op_type == "Concat" else node.input[1:]
        if free and (node.op_type not in MOVED or free.intersection(where)):
            return None
        if not _makes_few(node, list(given.values())):
            return None
        numbers = self._alone(node, {name: value.data for name, value in given.items()})
        if numbers.size > MOST or numbers.dtype.kind not in "biuf":
            return None
        masks = {
            name: value.data if name in where else np.ma.getmaskarray(value)
            for name, value in given.items()
        }
        return np.ma.masked_array(numbers, self._alone(node, masks) if free else False)

    def _alone(self, node: NodeProto, given: dict[str, Numbers]) -> Numbers:
        """Compute a node as the file's opset has it, not as the newest."""
        own = NodeProto.FromString(node.SerializeToString())
        own.domain = ""
        inputs = [helper.make_empty_tensor_value_info(one) for one in given]
        made = [helper.make_empty_tensor_value_info(one) for one in node.output]
        graph = helper.make_graph([own], "alone", inputs, made)
        alone = ReferenceEvaluator(helper.make_model(graph, opset_imports=self._opsets))
        with np.errstate(all="ignore"):
            (numbers,) = alone.run(None, given)
        return np.asarray(numbers)

    def _shape(self, node: NodeProto) -> Masked | None:
        sides = self._shapes.get(node.input[0])
        if sides is None:
            return None
        if node.op_type == "Size":
            return np.ma.masked_array(np.array(math.prod(sides))) if all(sides) else None
        ends = {one.name: one.i for one in node.attribute}
        cut = np.array(sides[ends.get("start", 0) : ends.get("end", len(sides))], dtype=np.int64)
        return np.ma.masked_array(cut, cut == 0)


def _is_plain(node: NodeProto) -> bool:
    """Return whether a node holds no graph and no numbers that lie in another file."""
    graphs = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
    return not any(one.type in graphs or is_external(one.t) for one in node.attribute)


def _makes_few(node: NodeProto, given: list[Masked]) -> bool:
    """Return whether a node makes few numbers, as far as that hangs on more than how many it has.

    Raises:
        ValueError: its operands do not fit each other.
    """
    if node.op_type == "ConstantOfShape":
        return math.prod(int(side) for side in given[0].data) <= MOST
    if node.op_type in POINTWISE:
        return math.prod(np.broadcast_shapes(*(one.shape for one in given))) <= MOST
    return True
