"""The table of ONNX operators that are read, each turned into one module.

A converter gets a `NodeView` and returns the module, which takes the node's inputs that are not
constants, in their order. Semantics follow the ONNX operator schemas, opset 9 to the newest that
the ``onnx`` package knows; the simplifier has folded constants before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from edgeclean.load.onnx.layers import batch_norm, conv, gemm, matmul, pool, prelu
from edgeclean.load.onnx.modules import (
    Arithmetic,
    Clamp,
    Concat,
    LinearClamp,
    Mean,
    Pad,
    Reshape,
    Slice,
    Transpose,
)
from edgeclean.load.onnx.node import NodeView

HUGE = 2**31  # ends of slices beyond any axis, such as INT64_MAX


def arithmetic(view: NodeView) -> nn.Module:
    """Convert Add, Sub, Mul and Div, of two values or of a value and a constant."""
    constants = [index for index in (0, 1) if view.is_constant(index)]
    if not constants:
        return Arithmetic(view.node.op_type)
    number = view.floats(constants[0])
    value_axes = len(view.shape(1 - constants[0]))
    if number.dim() > value_axes or (number.dim() == value_axes and number.shape[0] != 1):
        raise view.refusal(f"a constant of shape {tuple(number.shape)} changes the batch axis")
    return Arithmetic(view.node.op_type, number, constant_first=constants[0] == 0)


def clip(view: NodeView) -> nn.Module:
    """Convert Clip; 0 to 6 is ReLU6."""
    low, high = -math.inf, math.inf
    if view.opset < 11:
        low, high = view.attribute("min", low), view.attribute("max", high)
    else:
        low = float(view.constant(1)) if view.given(1) else low
        high = float(view.constant(2)) if view.given(2) else high
    return nn.ReLU6() if (low, high) == (0.0, 6.0) else Clamp(low, high)


def reduce_mean(view: NodeView) -> nn.Module:
    """Convert ReduceMean behind the batch axis; over a whole plane it is a global pooling."""
    axes = tuple(sorted(view.axis(axis) for axis in view.integers("axes", 1) or ()))
    if not axes:
        raise view.refusal("no axes are given; it would mix the images of a batch")
    keep = bool(view.attribute("keepdims", 1))
    if axes == (2, 3) and keep and len(view.shape()) == 4:
        return nn.AdaptiveAvgPool2d(1)
    return Mean(axes, keep=keep)


def slice_(view: NodeView) -> nn.Module:
    """Convert Slice with constant bounds and steps above zero."""
    starts, ends = view.integers("starts", 1) or [], view.integers("ends", 2) or []
    axes = view.integers("axes", 3) or list(range(len(starts)))
    steps = view.integers("steps", 4) or [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or min(steps, default=1) < 1:
        raise view.refusal("bounds of different lengths, or steps below one")
    cuts = zip((view.axis(axis) for axis in axes), starts, ends, steps, strict=True)
    return Slice(
        tuple((axis, start, max(-HUGE, min(end, HUGE)), step) for axis, start, end, step in cuts)
    )


def pad(view: NodeView) -> nn.Module:
    """Convert Pad by a constant, behind the batch axis."""
    mode = view.attribute("mode", b"constant")
    widths = view.integers("pads", 1) or []
    axes = len(view.shape())
    if mode != b"constant" or view.given(3) or len(widths) != 2 * axes or widths[0] or widths[axes]:
        raise view.refusal("only constant padding of all axes but the batch axis is supported")
    number = float(view.constant(2)) if view.given(2) else float(view.attribute("value", 0.0))
    paired = [(widths[axis], widths[axis + axes]) for axis in reversed(range(1, axes))]
    return Pad(tuple(width for pair in paired for width in pair), number)


def reshape(view: NodeView) -> nn.Module:
    """Convert Reshape, Squeeze and Unsqueeze to the inferred shape, the first axis left free.

    Numbers keep their order, so a batch only makes the first axis longer, also where that axis
    holds rows of an image rather than images.
    """
    return Reshape(view.shapes[view.node.output[0]][1:])


def flatten(view: NodeView) -> nn.Module:
    """Convert Flatten behind the batch axis."""
    view.axis(1)
    if int(view.attribute("axis", 1)) != 1:
        raise view.refusal(f"axis {view.attribute('axis')}; 1 is supported")
    return nn.Flatten()


def transpose(view: NodeView) -> nn.Module:
    """Convert Transpose of the axes behind the batch axis."""
    order = [int(axis) for axis in view.attribute("perm", [])]
    if not order or order[0] != 0:
        raise view.refusal(f"order {order}, which moves the batch axis")
    return Transpose(tuple(order))


def softmax(view: NodeView) -> nn.Module:
    """Convert Softmax and LogSoftmax over one axis."""
    axis = view.axis(int(view.attribute("axis", -1 if view.opset >= 13 else 1)))
    if view.opset < 13 and axis != len(view.shape()) - 1:
        raise view.refusal("before opset 13 it joins axes; only the last axis is supported")
    return nn.Softmax(axis) if view.node.op_type == "Softmax" else nn.LogSoftmax(axis)


def hard_sigmoid(view: NodeView) -> nn.Module:
    """Convert HardSigmoid; with slope 1/6 it is torch's own."""
    slope, offset = view.attribute("alpha", 0.2), view.attribute("beta", 0.5)
    same = math.isclose(slope, 1 / 6, rel_tol=1e-6) and offset == 0.5
    return nn.Hardsigmoid() if same else LinearClamp(slope, offset)


def dropout(view: NodeView) -> nn.Module:
    """Convert Dropout, which does nothing in evaluation mode.

    Raises:
        InputRejectedError: the graph asks for it in inference as well.
    """
    if view.given(2) and bool(view.constant(2)):
        raise view.refusal("it is in training mode; export the network in evaluation mode")
    return nn.Identity()


def nothing(view: NodeView) -> nn.Module:
    """Convert Identity."""
    return nn.Identity()


OPERATORS: dict[str, Callable[[NodeView], nn.Module]] = {
    "Add": arithmetic,
    "AveragePool": pool,
    "BatchNormalization": batch_norm,
    "Clip": clip,
    "Concat": lambda view: Concat(view.axis(int(view.attribute("axis")))),
    "Conv": conv,
    "Div": arithmetic,
    "Dropout": dropout,
    "Elu": lambda view: nn.ELU(view.attribute("alpha", 1.0)),
    "Flatten": flatten,
    "Gemm": gemm,
    "GlobalAveragePool": lambda view: nn.AdaptiveAvgPool2d(1),
    "GlobalMaxPool": lambda view: nn.AdaptiveMaxPool2d(1),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda view: nn.Hardswish(),
    "Identity": nothing,
    "LeakyRelu": lambda view: nn.LeakyReLU(view.attribute("alpha", 0.01)),
    "LogSoftmax": softmax,
    "MatMul": matmul,
    "MaxPool": pool,
    "Mul": arithmetic,
    "PRelu": prelu,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Relu": lambda view: nn.ReLU(),
    "Reshape": reshape,
    "Sigmoid": lambda view: nn.Sigmoid(),
    "Slice": slice_,
    "Softmax": softmax,
    "Squeeze": reshape,
    "Sub": arithmetic,
    "Tanh": lambda view: nn.Tanh(),
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
