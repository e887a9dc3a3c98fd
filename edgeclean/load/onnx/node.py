"""A view of one node of an ONNX graph, with the constants and shapes known around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from onnx import NodeProto, helper
from torch import Tensor

from edgeclean.errors import InputRejectedError

MOST_INTEGERS = 64  # of a list of axes, sides or bounds; no tensor has as many axes


def node_label(node: NodeProto) -> str:
    """Return a node in words, for messages."""
    name = node.name or (node.output[0] if node.output else "")
    return f"{node.op_type[:40]} node {name[:80]!r}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node, with the constants and shapes known around it.

    Attributes:
        node: the node.
        constants: every constant of the graph, by name.
        shapes: the shape of every value for one image, by name.
        opset: the version of the graph's operators.
    """

    node: NodeProto
    constants: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    opset: int

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute's value."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        return default

    def given(self, index: int) -> bool:
        """Return whether the input is there (optional inputs may be left out or empty)."""
        return index < len(self.node.input) and self.node.input[index] != ""

    def is_constant(self, index: int) -> bool:
        """Return whether the input is a constant."""
        return self.given(index) and self.node.input[index] in self.constants

    def constant(self, index: int) -> Tensor:
        """Return the constant at an input.

        Raises:
            InputRejectedError: it is computed, not constant.
        """
        if not self.is_constant(index):
            raise self.refusal(f"input {index} must be a constant")
        return self.constants[self.node.input[index]]

    def floats(self, index: int) -> Tensor:
        """Return the constant at an input, as float32, in memory that nothing else shares.

        Raises:
            InputRejectedError: it is computed, or some of its numbers are NaN or infinite.
        """
        numbers = self.constant(index).to(torch.float32, copy=True)
        if not bool(torch.isfinite(numbers).all()):
            raise self.refusal(
                f"input {index} has NaN or infinite numbers; a trained network has none"
            )
        return numbers

    def integers(self, name: str, index: int) -> list[int] | None:
        """Return a list that was an attribute in older opsets and is an input in newer ones.

        Raises:
            InputRejectedError: it is computed, or longer than any list of axes.
        """
        listed = self.constant(index).flatten() if self.given(index) else self.attribute(name)
        if listed is None:
            return None
        if len(listed) > MOST_INTEGERS:
            raise self.refusal(f"{name} has {len(listed)} numbers; {MOST_INTEGERS} are read")
        return [int(number) for number in listed]

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Return an input's shape, for one image."""
        return self.shapes[self.node.input[index]]

    def axis(self, axis: int) -> int:
        """Return an axis of the first input, counted from the front; never the batch axis.

        Raises:
            InputRejectedError: it is the batch axis.
        """
        axes = len(self.shape())
        positive = axis + axes if axis < 0 else axis
        if not 0 < positive < axes:
            raise self.refusal(f"axis {axis} of {axes}; one behind the batch axis is needed")
        return positive

    def refusal(self, why: str) -> InputRejectedError:
        """Return the error that names this node."""
        return InputRejectedError(f"{node_label(self.node)}: {why}")
