"""Small modules for ONNX operators that no stock ``torch.nn`` module computes."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

_ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
}


class Arithmetic(nn.Module):
    """Compute Add, Sub, Mul or Div of two values, or of a value and a constant on its own side."""

    constant: Tensor

    def __init__(
        self, operation: str, constant: Tensor | None = None, *, constant_first: bool = False
    ) -> None:
        super().__init__()
        self.operation = operation
        self.constant_first = constant_first
        self.has_constant = constant is not None
        self.register_buffer("constant", torch.zeros(0) if constant is None else constant)

    def forward(self, *values: Tensor) -> Tensor:
        """Return the result, broadcast as numpy does."""
        if self.has_constant:
            values = (
                (self.constant, values[0]) if self.constant_first else (values[0], self.constant)
            )
        return _ARITHMETIC[self.operation](values[0], values[1])


class Concat(nn.Module):
    """Join values along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *values: Tensor) -> Tensor:
        """Return the joined values."""
        return torch.cat(values, dim=self.axis)


class Mean(nn.Module):
    """Take the mean over axes."""

    def __init__(self, axes: tuple[int, ...], *, keep: bool) -> None:
        super().__init__()
        self.axes = axes
        self.keep = keep

    def forward(self, values: Tensor) -> Tensor:
        """Return the means."""
        return values.mean(dim=self.axes, keepdim=self.keep)


class Slice(nn.Module):
    """Take every ``step``-th index from ``start`` up to ``end`` on each of some axes."""

    def __init__(self, cuts: tuple[tuple[int, int, int, int], ...]) -> None:
        """Store ``cuts``, each an (axis, start, end, step) with a step above zero."""
        super().__init__()
        self.cuts = cuts

    def forward(self, values: Tensor) -> Tensor:
        """Return the slice, which is a view."""
        index = [slice(None)] * values.dim()
        for axis, start, end, step in self.cuts:
            index[axis] = slice(start, end, step)
        cut: Tensor = operator.getitem(values, tuple(index))
        return cut


class Pad(nn.Module):
    """Put a constant around the values; ``widths`` are as in ``torch.nn.functional.pad``."""

    def __init__(self, widths: tuple[int, ...], number: float) -> None:
        super().__init__()
        self.widths = widths
        self.number = number

    def forward(self, values: Tensor) -> Tensor:
        """Return the padded values."""
        return functional.pad(values, self.widths, value=self.number)


class Reshape(nn.Module):
    """Reshape to a shape that is fixed but for its first axis."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, values: Tensor) -> Tensor:
        """Return the same numbers in the same order."""
        return values.reshape(-1, *self.shape)


class Transpose(nn.Module):
    """Put the axes in another order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, values: Tensor) -> Tensor:
        """Return a view with the axes reordered."""
        return values.permute(self.order)


class Clamp(nn.Module):
    """Clamp values between two bounds, either of which may be infinite."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low = low
        self.high = high

    def forward(self, values: Tensor) -> Tensor:
        """Return the clamped values."""
        return values.clamp(self.low, self.high)


class LinearClamp(nn.Module):
    """Compute clamp(slope * x + offset, 0, 1): ONNX's HardSigmoid with its own slope and offset."""

    def __init__(self, slope: float, offset: float) -> None:
        super().__init__()
        self.slope = slope
        self.offset = offset

    def forward(self, values: Tensor) -> Tensor:
        """Return values in [0, 1]."""
        return (values * self.slope + self.offset).clamp(0, 1)
