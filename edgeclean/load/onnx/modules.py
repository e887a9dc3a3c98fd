"""Small modules for ONNX operators that no stock ``torch.nn`` module computes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

_ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
    "Pow": torch.pow,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mod": torch.fmod,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}
_VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Sum": torch.add,
    "Mean": torch.add,
    "Max": torch.maximum,
    "Min": torch.minimum,
}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Cast": Tensor.float,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsInf": torch.isinf,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}


class WithConstants(nn.Module):
    """A module of several operands, of which some are constants at places of their own.

    Attributes:
        places: for each operand, the name of its buffer, or None for a value.
    """

    def __init__(self, operands: int, constants: Mapping[int, Tensor]) -> None:
        """Store ``constants`` by their places among all ``operands``."""
        super().__init__()
        for place, number in constants.items():
            self.register_buffer(f"operand{place}", number)
        self.places = tuple(
            f"operand{place}" if place in constants else None for place in range(operands)
        )

    def operands(self, values: tuple[Tensor, ...]) -> list[Tensor]:
        """Return all operands in their order."""
        following = iter(values)
        return [self.get_buffer(name) if name else next(following) for name in self.places]


class Arithmetic(nn.Module):
    """Compute one of `_ARITHMETIC` of two values, or of a value and a constant on its own side."""

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


class Variadic(WithConstants):
    """Compute the Sum, Mean, Max or Min of any number of values and constants, elementwise."""

    def __init__(self, operation: str, operands: int, constants: Mapping[int, Tensor]) -> None:
        super().__init__(operands, constants)
        self.operation = operation

    def forward(self, *values: Tensor) -> Tensor:
        """Return the result, broadcast as numpy does."""
        operands = self.operands(values)
        result = functools.reduce(_VARIADIC[self.operation], operands)
        return result / len(operands) if self.operation == "Mean" else result


class Where(WithConstants):
    """Take the second operand where the first is true, else the third."""

    def __init__(self, constants: Mapping[int, Tensor]) -> None:
        super().__init__(3, constants)

    def forward(self, *values: Tensor) -> Tensor:
        """Return the chosen numbers, broadcast as numpy does."""
        condition, first, second = self.operands(values)
        return torch.where(condition, first, second)


class Function(nn.Module):
    """Compute one of the functions of one value that have no module in ``torch.nn``."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, values: Tensor) -> Tensor:
        """Return the function of each number."""
        return _FUNCTIONS[self.operation](values)


class MatMul(WithConstants):
    """Multiply matrices: of two values, or of a value and a constant on its own side."""

    def __init__(self, constants: Mapping[int, Tensor]) -> None:
        super().__init__(2, constants)

    def forward(self, *values: Tensor) -> Tensor:
        """Return the products, the axes before the last two broadcast."""
        left, right = self.operands(values)
        return left @ right


class LinearWithSum(nn.Module):
    """Add multiples of a value to what a linear layer makes of another: a Gemm of two values."""

    def __init__(self, linear: nn.Linear, beta: float) -> None:
        super().__init__()
        self.linear = linear
        self.beta = beta

    def forward(self, values: Tensor, added: Tensor) -> Tensor:
        """Return [n, outputs] of [n, inputs] and what is added to it."""
        made: Tensor = self.linear(values)
        return made + added * self.beta


class Concat(WithConstants):
    """Join values, and constants that stand between them, along an axis behind the first.

    A constant has the rows of one image; a batch of images gets them once for each.
    """

    def __init__(
        self, axis: int, operands: int = 0, constants: Mapping[int, Tensor] | None = None
    ) -> None:
        super().__init__(operands, constants or {})
        self.axis = axis

    def forward(self, *values: Tensor) -> Tensor:
        """Return the joined values."""
        if not any(self.places):
            return torch.cat(values, dim=self.axis)
        rows = values[0].shape[0]
        parts = [
            part if name is None else part.repeat(rows // part.shape[0], *[1] * (part.dim() - 1))
            for name, part in zip(self.places, self.operands(values), strict=True)
        ]
        return torch.cat(parts, dim=self.axis)


class Mean(nn.Module):
    """Take the mean over axes."""

    def __init__(self, axes: tuple[int, ...], *, keep: bool) -> None:
        super().__init__()
        self.axes = axes
        self.keep = keep

    def forward(self, values: Tensor) -> Tensor:
        """Return the means."""
        return values.mean(dim=self.axes, keepdim=self.keep)


class Reduce(nn.Module):
    """Reduce axes to one number each: its Sum, Max, Min, L1, L2, ... as in ONNX's ``Reduce*``."""

    def __init__(self, operation: str, axes: tuple[int, ...], *, keep: bool) -> None:
        """Store ``operation``, one of `_REDUCTIONS`, and whether reduced axes are kept as 1."""
        super().__init__()
        self.operation = operation
        self.axes = axes
        self.keep = keep

    def forward(self, values: Tensor) -> Tensor:
        """Return the reduced values."""
        return _REDUCTIONS[self.operation](values, self.axes, self.keep)


_REDUCTIONS: dict[str, Callable[[Tensor, tuple[int, ...], bool], Tensor]] = {
    "L1": lambda values, axes, keep: values.abs().sum(axes, keepdim=keep),
    "L2": lambda values, axes, keep: values.square().sum(axes, keepdim=keep).sqrt(),
    "LogSum": lambda values, axes, keep: values.sum(axes, keepdim=keep).log(),
    "LogSumExp": lambda values, axes, keep: values.logsumexp(axes, keepdim=keep),
    "Max": lambda values, axes, keep: values.amax(axes, keepdim=keep),
    "Min": lambda values, axes, keep: values.amin(axes, keepdim=keep),
    "Prod": lambda values, axes, keep: functools.reduce(
        lambda left, axis: left.prod(axis, keepdim=keep), reversed(axes), values
    ),
    "Sum": lambda values, axes, keep: values.sum(axes, keepdim=keep),
    "SumSquare": lambda values, axes, keep: values.square().sum(axes, keepdim=keep),
}


class RunningSum(nn.Module):
    """Sum each entry of an axis with those before it, or behind: ONNX's CumSum."""

    def __init__(self, axis: int, *, exclusive: bool, reverse: bool) -> None:
        """Store the axis, whether an entry is left out of its own sum, and the direction."""
        super().__init__()
        self.axis = axis
        self.exclusive = exclusive
        self.reverse = reverse

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape."""
        given = values.flip(self.axis) if self.reverse else values
        sums = given.cumsum(self.axis)
        if self.exclusive:
            sums = sums - given
        return sums.flip(self.axis) if self.reverse else sums


class JoinedSoftmax(nn.Module):
    """Compute Softmax or LogSoftmax over an axis and all behind it as one (ONNX before 13)."""

    def __init__(self, axis: int, *, log: bool) -> None:
        super().__init__()
        self.axis = axis
        self.log = log

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape."""
        rows = values.flatten(self.axis)
        result = rows.log_softmax(-1) if self.log else rows.softmax(-1)
        return result.reshape(values.shape)


class PowerPool(nn.Module):
    """Take (sum of abs(x) ** power) ** (1 / power) over windows, none of them padded."""

    def __init__(self, power: int, kernel: tuple[int, int], strides: tuple[int, int]) -> None:
        super().__init__()
        self.power = power
        self.kernel = kernel
        self.strides = strides

    def forward(self, values: Tensor) -> Tensor:
        """Return one number for each window."""
        powers = values.abs().pow(self.power)
        sums = functional.avg_pool2d(powers, self.kernel, self.strides) * math.prod(self.kernel)
        return sums.pow(1 / self.power)


class ChannelNorm(nn.Module):
    """Divide by (bias + alpha / size * sum of squares of ``size`` channels) ** beta: ONNX's LRN.

    Torch's own needs one order of the memory, and its window of an even size lies elsewhere.
    """

    def __init__(self, size: int, alpha: float, beta: float, bias: float) -> None:
        super().__init__()
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.bias = bias

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape, [n, c, h, w]."""
        before = (self.size - 1) // 2
        around = (0, 0, 0, 0, before, self.size - 1 - before)
        squares = functional.pad(values.square(), around)
        channels = values.shape[1]
        windows = (squares[:, start : start + channels] for start in range(self.size))
        sums = functools.reduce(torch.add, windows)
        return values / (self.bias + self.alpha / self.size * sums).pow(self.beta)


class UnitNorm(nn.Module):
    """Divide by the L1 or L2 norm along an axis: ONNX's LpNormalization."""

    def __init__(self, axis: int, power: int) -> None:
        super().__init__()
        self.axis = axis
        self.power = power

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape."""
        norms: Tensor = torch.linalg.vector_norm(values, self.power, self.axis, keepdim=True)
        return values / norms


class SlopedReLU(nn.Module):
    """Multiply what lies below zero by a slope of its place, as Keras' PReLU has by default."""

    slopes: Tensor

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.register_buffer("slopes", slopes)

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape."""
        return torch.where(values < 0, values * self.slopes, values)


class Interpolate(nn.Module):
    """Resize planes by a matrix for each side, which holds any linear interpolation."""

    rows: Tensor
    columns: Tensor

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        """Store ``rows`` [new height, height] and ``columns`` [new width, width]."""
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, values: Tensor) -> Tensor:
        """Return planes of the new size."""
        return self.rows @ values @ self.columns.transpose(0, 1)


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


class ScaledElu(nn.Module):
    """Compute scale * elu(x, alpha): ONNX's Selu with numbers of its own."""

    def __init__(self, alpha: float, scale: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.scale = scale

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape."""
        return functional.elu(values, self.alpha) * self.scale


class Swish(nn.Module):
    """Compute x * sigmoid(alpha * x)."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape."""
        return values * torch.sigmoid(values * self.alpha)
