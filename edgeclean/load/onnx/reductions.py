"""ONNX operators that take a mean, a largest or another number of many, and those over an axis."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from edgeclean.load.onnx.modules import JoinedSoftmax, Mean, Reduce, RunningSum, UnitNorm
from edgeclean.load.onnx.node import NodeView


def reduction(view: NodeView) -> nn.Module:
    """Convert Reduce* behind the batch axis; over a whole plane some are global poolings."""
    given = view.integers("axes", 1)
    if not given:
        if view.attribute("noop_with_empty_axes", 0):
            return nn.Identity()
        raise view.refusal("no axes are given; it would mix the images of a batch")
    axes = tuple(sorted({view.axis(axis) for axis in given}))
    keep = bool(view.attribute("keepdims", 1))
    operation = view.node.op_type.removeprefix("Reduce")
    if axes == (2, 3) and keep and len(view.shape()) == 4:
        if operation == "Mean":
            return nn.AdaptiveAvgPool2d(1)
        if operation == "Max":
            return nn.AdaptiveMaxPool2d(1)
    return Mean(axes, keep=keep) if operation == "Mean" else Reduce(operation, axes, keep=keep)


def global_pool(view: NodeView) -> nn.Module:
    """Convert Global*Pool, over all axes behind the channels."""
    axes = tuple(range(2, len(view.shape())))
    average = view.node.op_type == "GlobalAveragePool"
    if view.node.op_type == "GlobalLpPool":
        power = int(view.attribute("p", 2))
        if power not in (1, 2):
            raise view.refusal(f"p is {power}; 1 and 2 are supported")
        return Reduce(f"L{power}", axes, keep=True)
    if axes == (2, 3):
        return nn.AdaptiveAvgPool2d(1) if average else nn.AdaptiveMaxPool2d(1)
    return Mean(axes, keep=True) if average else Reduce("Max", axes, keep=True)


def softmax(view: NodeView) -> nn.Module:
    """Convert Softmax and LogSoftmax; before opset 13 an axis and all behind it are one."""
    axis = view.axis(int(view.attribute("axis", -1 if view.opset >= 13 else 1)))
    log = view.node.op_type == "LogSoftmax"
    if view.opset < 13 and any(side != 1 for side in view.shape()[axis + 1 :]):
        return JoinedSoftmax(axis, log=log)
    return nn.LogSoftmax(axis) if log else nn.Softmax(axis)


def unit_norm(view: NodeView) -> nn.Module:
    """Convert LpNormalization."""
    return UnitNorm(view.axis(int(view.attribute("axis", -1))), int(view.attribute("p", 2)))


def running_sum(view: NodeView) -> nn.Module:
    """Convert CumSum along a constant axis."""
    return RunningSum(
        view.axis(int(view.constant(1))),
        exclusive=bool(view.attribute("exclusive", 0)),
        reverse=bool(view.attribute("reverse", 0)),
    )


REDUCTIONS: dict[str, Callable[[NodeView], nn.Module]] = {
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), global_pool),
    **{
        f"Reduce{kind}": reduction
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum")
    },
    "ReduceSumSquare": reduction,
    **dict.fromkeys(("LogSoftmax", "Softmax"), softmax),
    "CumSum": running_sum,
    "LpNormalization": unit_norm,
}
