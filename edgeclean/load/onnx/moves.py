"""Small modules that move numbers to other places, leave some out, or repeat them, as ONNX does."""

from __future__ import annotations

import operator

from torch import Tensor, nn
from torch.nn import functional


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


class Take(nn.Module):
    """Take indices of an axis behind the first, in any order, some of them more than once."""

    indices: Tensor

    def __init__(self, axis: int, indices: Tensor) -> None:
        """Store ``indices`` from zero, of one axis or more."""
        super().__init__()
        self.axis = axis
        self.register_buffer("indices", indices)

    def forward(self, values: Tensor) -> Tensor:
        """Return the taken planes, in the place of the axis."""
        index = self.indices
        taken = values.index_select(self.axis, index.flatten())
        if index.dim() == 1:
            return taken
        shape = (*values.shape[: self.axis], *index.shape, *values.shape[self.axis + 1 :])
        return taken.reshape(shape)


class Expand(nn.Module):
    """Repeat axes of length one up to a shape that is fixed but for its first axis."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, values: Tensor) -> Tensor:
        """Return a view."""
        return values.expand(-1, *self.shape)


class Tile(nn.Module):
    """Repeat the whole along axes behind the first."""

    def __init__(self, times: tuple[int, ...]) -> None:
        super().__init__()
        self.times = times

    def forward(self, values: Tensor) -> Tensor:
        """Return the repeated values."""
        return values.repeat(1, *self.times)


class Blocks(nn.Module):
    """Move blocks of pixels into channels, or back, in the order of ONNX's DepthToSpace "DCR"."""

    def __init__(self, side: int, *, to_depth: bool) -> None:
        """Store the blocks' ``side``."""
        super().__init__()
        self.side = side
        self.to_depth = to_depth

    def forward(self, values: Tensor) -> Tensor:
        """Return the same numbers in other places."""
        side, (_, channels, height, width) = self.side, values.shape
        if self.to_depth:
            parts = values.reshape(-1, channels, height // side, side, width // side, side)
            moved = parts.permute(0, 3, 5, 1, 2, 4)
            return moved.reshape(-1, channels * side**2, height // side, width // side)
        parts = values.reshape(-1, side, side, channels // side**2, height, width)
        moved = parts.permute(0, 3, 4, 1, 5, 2)
        return moved.reshape(-1, channels // side**2, height * side, width * side)


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


class Triangle(nn.Module):
    """Leave zeros above or below a diagonal of the last two axes: ONNX's Trilu."""

    def __init__(self, diagonal: int, *, upper: bool) -> None:
        """Store the diagonal, counted from the main one upwards, and the part that stays."""
        super().__init__()
        self.diagonal = diagonal
        self.upper = upper

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape."""
        return values.triu(self.diagonal) if self.upper else values.tril(self.diagonal)
