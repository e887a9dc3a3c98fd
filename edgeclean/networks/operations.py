"""Modules for what lies between the layers of a network that was written out from a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Given:
    """The place of the n-th value that a step gives an operation."""

    index: int


@dataclass(frozen=True, slots=True)
class Held:
    """The place of a tensor that the operation holds itself, by its attribute's name."""

    name: str


class Operation(nn.Module):
    """One function of PyTorch's own, with its fixed arguments, as a module.

    Tensors that it holds are parameters where they are given as such, else buffers: they move to a
    device with the network, and are part of its state.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: Mapping[str, Any],
        held: Sequence[Tensor] = (),
    ) -> None:
        """Keep the arguments, in which `Given` and `Held` stand for tensors.

        Args:
            function: a function without state, such as ``torch.ops.aten.relu.default``.
            arguments: by position; lists and tuples may hold places too.
            keywords: by name.
            held: the tensors ``constant_0``, ``constant_1``, ... that `Held` names.
        """
        super().__init__()
        self.function = function
        self.arguments, self.keywords = arguments, dict(keywords)
        for index, tensor in enumerate(held):
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"constant_{index}", tensor)
            else:
                self.register_buffer(f"constant_{index}", tensor)

    def forward(self, *values: Any) -> Any:
        """Return the function of the values: a tensor, or a tuple of tensors."""
        arguments = [self._filled(one, values) for one in self.arguments]
        keywords = {name: self._filled(one, values) for name, one in self.keywords.items()}
        return self.function(*arguments, **keywords)

    def extra_repr(self) -> str:
        """Return the function and its arguments: two that differ are written differently."""
        keywords = [f"{name}={one}" for name, one in self.keywords.items()]
        own = isinstance(self.function, torch._ops.OpOverload)  # whose name has the overload's
        name = str(self.function) if own else self.function.__name__
        return ", ".join([name, *map(str, self.arguments), *keywords])

    def _filled(self, argument: Any, values: tuple[Any, ...]) -> Any:
        if isinstance(argument, Given):
            return values[argument.index]
        if isinstance(argument, Held):
            return getattr(self, argument.name)
        if isinstance(argument, list | tuple):
            return type(argument)(self._filled(one, values) for one in argument)
        return argument


class ForEachImage(nn.Module):
    """A constant that is there once for each image of a batch, as a class token is."""

    constant: Tensor

    def __init__(self, constant: Tensor, axis: int) -> None:
        """Keep a constant that has one entry along ``axis``, the axis of the images."""
        super().__init__()
        self.axis = axis
        if isinstance(constant, nn.Parameter):
            self.register_parameter("constant", constant)
        else:
            self.register_buffer("constant", constant)

    def forward(self, images: Tensor) -> Tensor:
        """Return a view of the constant with ``len(images)`` equal entries along its axis."""
        sizes = [-1] * self.constant.dim()
        sizes[self.axis] = images.shape[0]
        return self.constant.expand(sizes)

    def extra_repr(self) -> str:
        """Return the constant's shape and its axis of images."""
        return f"{tuple(self.constant.shape)}, axis={self.axis}"


class MeanOfParts(nn.Module):
    """Adaptive average pooling to any plane, as two matrices: ONNX has it for even parts only."""

    rows: Tensor
    columns: Tensor

    def __init__(self, plane: tuple[int, int], pooled: tuple[int, int]) -> None:
        """Compute both matrices.

        Args:
            plane: height and width of the input.
            pooled: height and width of the output, each at least 1.
        """
        super().__init__()
        self.register_buffer("rows", _means(plane[0], pooled[0]))
        self.register_buffer("columns", _means(plane[1], pooled[1]).T.contiguous())

    def forward(self, values: Tensor) -> Tensor:
        """Return [n, c, *pooled] for [n, c, *plane], as ``adaptive_avg_pool2d`` would."""
        return self.rows @ values @ self.columns


def max_of_parts(values: Tensor, plane: Sequence[int], pooled: Sequence[int]) -> tuple[Tensor]:
    """Return [n, c, *pooled] alone in a tuple: ``adaptive_max_pool2d`` has the places behind it.

    ONNX has a pool of even parts only: here each part of a row, then of a column, is reduced. The
    ``plane`` is given, for the exporter would write down how its sides are computed.
    """
    for axis, side, parts in zip((2, 3), plane, pooled, strict=True):
        cuts = _parts(side, parts)
        of_each = [values.narrow(axis, start, end - start).amax(axis) for start, end in cuts]
        values = torch.stack(of_each, axis)
    return (values,)


def divided_pool(
    values: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    divisor: int,
) -> Tensor:
    """Return ``avg_pool2d`` with a divisor of its own, which ONNX's exporter leaves out."""
    steps = list(stride) or None
    means = functional.avg_pool2d(values, list(kernel), steps, list(padding), ceil_mode)
    return means * (math.prod(kernel) / divisor)


def rms_norm(
    values: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Return ``functional.rms_norm``, which ONNX has from opset 23 on only."""
    least = torch.finfo(values.dtype).eps if eps is None else eps
    squares = values.square().mean(tuple(range(-len(shape), 0)), keepdim=True)
    scaled = values * (squares + least).rsqrt()
    return scaled if weight is None else scaled * weight


def affine_positions(plane: Sequence[int], align_corners: bool) -> Tensor:
    """Return [h*w, 3]: x, y and 1 of every place of a plane, as ``affine_grid`` lays them out."""
    height, width = plane
    identity = torch.eye(2, 3).unsqueeze(0)
    grid = functional.affine_grid(identity, [1, 1, height, width], align_corners=align_corners)
    places = torch.cat([grid, torch.ones(1, height, width, 1)], 3)
    return places.reshape(height * width, 3)


def affine_grid(theta: Tensor, places: Tensor, plane: tuple[int, int]) -> Tensor:
    """Return ``affine_grid`` of matrices [n, 2, 3], for any number of them."""
    return (places @ theta.transpose(1, 2)).reshape(-1, *plane, 2)


def shuffled(values: Tensor, groups: int) -> Tensor:
    """Return what `channel_shuffle` does: the first of each group, then the second of each."""
    moved: Tensor = values.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
    return moved


def above(values: Tensor, threshold: int | float, value: int | float) -> Tensor:
    """Return what `threshold` does: a fixed number in place of all that is not above another."""
    return torch.where(values <= threshold, value, values)


def turned(values: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """Return what `rot90` does: ``k`` quarters of a turn, from the first axis to the second."""
    first, second = dims
    if k % 2 == 0:
        return values.flip((first, second)) if k % 4 else values
    return values.flip(second if k % 4 == 1 else first).transpose(first, second)


def softplus(values: Tensor, beta: int | float = 1, threshold: int | float = 20) -> Tensor:
    """Return what `softplus` does; ONNX's has no threshold, which shows where it is a low one."""
    curved = functional.softplus(values, beta, max(threshold, 20))
    return torch.where(values * beta > threshold, values, curved) if threshold < 20 else curved


def expm1(values: Tensor) -> Tensor:
    """Return what `expm1` does, to rounding of numbers around one."""
    return values.exp() - 1


def exp2(values: Tensor) -> Tensor:
    """Return two to the power of each number."""
    return (values * math.log(2)).exp()


def bilinear(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return [..., k] of [..., i] and [..., j] by a weight [k, i, j], as ``nn.Bilinear`` does."""
    outputs, rows, columns = weight.shape
    turned = weight.permute(0, 2, 1).reshape(outputs * columns, rows)
    halves = functional.linear(left, turned).unflatten(-1, (outputs, columns))
    products: Tensor = (halves * right.unsqueeze(-2)).sum(-1)
    return products if bias is None else products + bias


def sinh(values: Tensor) -> Tensor:
    """Return what `sinh` does, to rounding of numbers around one."""
    return (values.exp() - (-values).exp()) / 2


def cosh(values: Tensor) -> Tensor:
    """Return what `cosh` does."""
    return (values.exp() + (-values).exp()) / 2


def asinh(values: Tensor) -> Tensor:
    """Return what `asinh` does, by a logarithm of the size alone: below zero, it would cancel."""
    size = torch.where(values < 0, -values, values)
    turned = (size + (size.square() + 1).sqrt()).log()
    return torch.where(values < 0, -turned, turned)


def hypot(left: Tensor, right: Tensor) -> Tensor:
    """Return the length of the side across from a right angle between two others."""
    return (left.square() + right.square()).sqrt()


def logaddexp(left: Tensor, right: Tensor) -> Tensor:
    """Return the logarithm of a sum of two powers of e, of any size."""
    return torch.maximum(left, right) + (-(left - right).abs()).exp().log1p()


def trunc(values: Tensor) -> Tensor:
    """Return what `trunc` does: the whole number next to each, towards zero."""
    return values.sign() * values.abs().floor()


def frac(values: Tensor) -> Tensor:
    """Return what `frac` does: what `trunc` leaves off."""
    return values - trunc(values)


def erfc(values: Tensor) -> Tensor:
    """Return what `erfc` does, to rounding of numbers around one."""
    return 1 - values.erf()


def sinc(values: Tensor) -> Tensor:
    """Return what `sinc` does: 1 at zero, and nowhere a gradient that is NaN."""
    angles = torch.where(values == 0, 1.0, values * math.pi)
    return torch.where(values == 0, 1.0, angles.sin() / angles)


def xlogy(factor: Tensor, values: Tensor) -> Tensor:
    """Return ``factor * log(values)``, and 0 wherever the factor is."""
    return torch.where(factor == 0, 0.0, factor * torch.where(factor == 0, 1.0, values).log())


def addcdiv(values: Tensor, above: Tensor, below: Tensor, *, value: int | float = 1) -> Tensor:
    """Return ``values + value * above / below``."""
    return values + above / below * value


def differences(
    values: Tensor,
    n: int = 1,
    dim: int = -1,
    prepend: Tensor | None = None,
    append: Tensor | None = None,
) -> Tensor:
    """Return what `diff` does: each entry of an axis less the one before it, ``n`` times."""
    values = torch.cat([one for one in (prepend, values, append) if one is not None], dim)
    for _ in range(n):
        pairs = values.shape[dim] - 1
        values = values.narrow(dim, 1, pairs) - values.narrow(dim, 0, pairs)
    return values


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the values as another type of numbers, as ``values.to(dtype)`` does."""
    return values.to(dtype)


def copied(values: Tensor, source: Tensor) -> Tensor:
    """Return ``source`` in the shape and type of ``values``, as ``values[...] = source`` does."""
    return source.expand_as(values).to(values.dtype)


def slice_written(
    values: Tensor,
    source: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Tensor:
    """Return ``values`` with ``source`` in the place of a slice of one axis, of every entry in it.

    Raises:
        ValueError: the slice leaves entries out.
    """
    if step != 1:
        raise ValueError(f"a slice is written with step {step}; only 1 can be")
    size = values.shape[dim]
    begin, stop, _ = slice(start, end).indices(size)
    parts = [
        values.narrow(dim, 0, begin),
        source,
        values.narrow(dim, max(stop, begin), size - max(stop, begin)),
    ]
    return torch.cat([part for part in parts if part.shape[dim]], dim)


def entry_written(values: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    """Return ``values`` with ``source`` in the place of one entry of an axis."""
    place = index % values.shape[dim]
    return slice_written(values, source.unsqueeze(dim), dim, place, place + 1)


def _means(side: int, pooled: int) -> Tensor:
    """Return [pooled, side]: each row averages its part of the side, as PyTorch cuts it."""
    matrix = torch.zeros(pooled, side)
    for index, (start, end) in enumerate(_parts(side, pooled)):
        matrix[index, start:end] = 1 / (end - start)
    return matrix


def _parts(side: int, pooled: int) -> list[tuple[int, int]]:
    """Return where PyTorch cuts a side into parts, which may share entries."""
    return [(one * side // pooled, -(-(one + 1) * side // pooled)) for one in range(pooled)]
