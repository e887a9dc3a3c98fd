"""A view of one node of an ONNX graph, with the constants and shapes known around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import NodeProto, helper
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.graph import node_label

MOST_INTEGERS = 64  # of a list of axes, sides or bounds; no tensor has as many axes


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One node, with the constants and shapes known around it.

    Attributes:
        node: the node.
        constants: every constant of the graph, by name.
        shapes: the shape of every value for one batch, by name.
        types: the element type of every value, as ONNX numbers them, by name.
        opset: the version of the graph's operators.
        batch: the images of one batch, by which all shapes were inferred.
        read: the inputs that were read as constants so far; an import may leave none unread.
    """

    node: NodeProto
    constants: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    opset: int
    batch: int
    read: set[int] = field(default_factory=set)

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
        self.read.add(index)
        return self.constants[self.node.input[index]]

    def floats(self, index: int, *, masks: bool = False) -> Tensor:
        """Return the constant at an input, as float32, in memory that nothing else shares.

        Args:
            index: the place of the input.
            masks: whether it may be -inf at places that it hides from a Softmax.

        Raises:
            InputRejectedError: it is computed, or some of its numbers are NaN or infinite.
        """
        numbers = self.constant(index).to(torch.float32, copy=True)
        finite = torch.isfinite(numbers)
        if masks:
            finite |= numbers == -math.inf
        if not bool(finite.all()):
            raise self.refusal(
                f"input {index} has NaN or infinite numbers; a trained network has none"
            )
        return numbers

    def operand(self, index: int) -> Tensor:
        """Return the constant at an elementwise operator's input, with one row for all images.

        Raises:
            InputRejectedError: as `floats`, or it gives each image of a batch other numbers.
        """
        number = self.constant(index)
        if number.is_floating_point():
            number = self.floats(index, masks=True)
        places = [place for place in range(len(self.node.input)) if not self.is_constant(place)]
        axes = max((len(self.shape(place)) for place in places), default=0)
        if number.dim() < axes:
            return number
        rows, length = number[:1], max(self.shape(place)[0] for place in places)
        same = number.shape[0] in (1, length) and torch.equal(number, rows.expand_as(number))
        if number.dim() > axes or not same:
            raise self.refusal(f"a constant of shape {tuple(number.shape)} changes the batch axis")
        return rows

    def constants_of(self, *, elementwise: bool = True) -> dict[int, Tensor]:
        """Return all constants by their places among the inputs, as `operand` or `floats` does.

        Raises:
            InputRejectedError: as those.
        """
        read = self.operand if elementwise else self.floats
        return {
            place: read(place)
            for place, name in enumerate(self.node.input)
            if name in self.constants
        }

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
        """Return an input's shape, for one batch; also that of a constant."""
        name = self.node.input[index]
        return tuple(self.constants[name].shape) if name in self.constants else self.shapes[name]

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


def fill(view: NodeView, layer: nn.Module, name: str, numbers: Tensor) -> None:
    """Copy numbers into a parameter or buffer of exactly their shape.

    Raises:
        InputRejectedError: it has another shape.
    """
    slot = getattr(layer, name)
    if slot.shape != numbers.shape:
        raise view.refusal(
            f"{name} has shape {tuple(numbers.shape)}; {tuple(slot.shape)} would fit"
        )
    with torch.no_grad():
        slot.copy_(numbers)
