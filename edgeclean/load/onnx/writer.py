"""Write a graph's nodes anew: under names that it does not have, and as its opset spells them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from edgeclean.load.onnx.graph import constants_of, names_of

Numbers = np.ndarray[Any, np.dtype[Any]]
CLIPS_BY_INPUTS = 11  # opset from which a Clip's bounds are inputs
# The opset from which axes are an input, and which one; of all other reductions 18 and 1.
AXES_AS_INPUT = {"ReduceSum": (13, 1), "Slice": (10, 3), "Squeeze": (13, 1), "Unsqueeze": (13, 1)}


class GraphWriter:
    """Writes nodes one after another, and constants into the graph at once.

    Attributes:
        opset: the version of the graph's operators.
        constants: what the graph holds as constants, by name, with those that are written.
        nodes: those that are written so far; they are to replace the graph's.
    """

    def __init__(self, graph: GraphProto, opset: int) -> None:
        """Take a graph, whose nodes stay as they are."""
        self.opset = opset
        self.constants = constants_of(graph)
        self.nodes: list[NodeProto] = []
        self._graph = graph
        self._taken = names_of(graph)
        self._numbers = count(len(self._taken))  # of which none is given twice

    def name(self, base: str) -> str:
        """Return a name that no value of the graph has, and that is not returned again."""
        names = (f"{base}/{number}" for number in self._numbers)
        return next(name for name in names if name not in self._taken)

    def constant(self, numbers: Numbers | Sequence[int], base: str) -> str:
        """Add a constant, a list as int64, and return its name."""
        array = numbers if isinstance(numbers, np.ndarray) else np.array(numbers, np.int64)
        tensor = numpy_helper.from_array(array, self.name(base))
        self._graph.initializer.append(tensor)
        self.constants[tensor.name] = tensor
        return tensor.name

    def add(
        self, kind: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any
    ) -> str:
        """Write a node of one output, and return this."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def clip(self, value: str, low: float, high: float, output: str, name: str = "") -> str:
        """Write a Clip of float32, and return its output."""
        if self.opset < CLIPS_BY_INPUTS:
            return self.add("Clip", [value], output, name, min=low, max=high)
        bounds = [self.constant(np.array(one, np.float32), output) for one in (low, high)]
        return self.add("Clip", [value, *bounds], output, name)

    def set_axes(self, node: NodeProto, axes: Sequence[int], base: str) -> None:
        """Give a node other axes, be they an attribute or an input; ``base`` names a constant."""
        since, place = AXES_AS_INPUT.get(node.op_type, (18, 1))
        if self.opset < since:
            set_attribute_(node, "axes", list(axes))
            return
        node.input.extend([""] * (place + 1 - len(node.input)))
        node.input[place] = self.constant(axes, base)


def set_attribute_(node: NodeProto, name: str, to: Any) -> None:
    """Give a node an attribute, in place of one of that name."""
    kept = [one for one in node.attribute if one.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, to)])
