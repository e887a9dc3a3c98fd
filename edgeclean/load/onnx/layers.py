"""ONNX operators that become layers of ``torch.nn``: with weights, or with a sliding window."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeclean.load.onnx.modules import Pad
from edgeclean.load.onnx.node import NodeView


@dataclass(frozen=True, slots=True)
class Window:
    """The window of a convolution or pooling; height comes before width everywhere."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]


def conv(view: NodeView) -> nn.Module:
    """Convert Conv, over planes, with constant weights."""
    weight = view.floats(1)
    if weight.dim() != 4:
        raise view.refusal(f"weights of {weight.dim()} axes; only convolutions of planes are read")
    kernel = (weight.shape[2], weight.shape[3])
    window = Window(kernel, _two(view, "strides"), _two(view, "dilations"))
    before, after = _padding(view, window)
    groups = int(view.attribute("group", 1))
    if groups < 1 or weight.shape[0] % groups:
        raise view.refusal(f"group {groups} does not divide {weight.shape[0]} channels")
    layer = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        kernel,
        window.strides,
        before if before == after else 0,
        window.dilations,
        groups,
        bias=view.given(2),
    )
    _fill(view, layer, "weight", weight)
    if view.given(2):
        _fill(view, layer, "bias", view.floats(2))
    return layer if before == after else nn.Sequential(_around(before, after, 0.0), layer)


def batch_norm(view: NodeView) -> nn.Module:
    """Convert BatchNormalization with stored statistics."""
    if view.attribute("training_mode", 0):
        raise view.refusal("it is in training mode; export the network in evaluation mode")
    scale = view.floats(1)
    layer = nn.BatchNorm2d if len(view.shape()) == 4 else nn.BatchNorm1d
    norm = layer(scale.numel(), eps=view.attribute("epsilon", 1e-5))
    for index, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        _fill(view, norm, name, view.floats(index))
    return norm


def gemm(view: NodeView) -> nn.Module:
    """Convert Gemm with constant weights: alpha * A B + beta * C."""
    if view.attribute("transA", 0):
        raise view.refusal("a transposed input is not supported")
    weight = view.floats(1) if view.attribute("transB", 0) else view.floats(1).transpose(0, -1)
    bias = view.floats(2) * view.attribute("beta", 1.0) if view.given(2) else None
    return _linear(view, weight * view.attribute("alpha", 1.0), bias)


def matmul(view: NodeView) -> nn.Module:
    """Convert MatMul of a value with a constant matrix."""
    return _linear(view, view.floats(1).transpose(0, -1), None)


def pool(view: NodeView) -> nn.Module:
    """Convert MaxPool and AveragePool over planes."""
    window = Window(
        _two(view, "kernel_shape", None), _two(view, "strides"), _two(view, "dilations")
    )
    before, after = _padding(view, window)
    even = before == after
    ceil = bool(view.attribute("ceil_mode", 0))
    if not even and ceil:
        raise view.refusal("uneven padding together with ceil_mode is not supported")
    padding = before if even else (0, 0)
    if view.node.op_type == "MaxPool":
        layer: nn.Module = nn.MaxPool2d(
            window.kernel, window.strides, padding, window.dilations, ceil_mode=ceil
        )
        return layer if even else nn.Sequential(_around(before, after, -math.inf), layer)
    counted = bool(view.attribute("count_include_pad", 0))
    if window.dilations != (1, 1) or not (even or counted):
        raise view.refusal("dilations, or uneven padding that does not count, are not supported")
    layer = nn.AvgPool2d(window.kernel, window.strides, padding, ceil, counted)
    return layer if even else nn.Sequential(_around(before, after, 0.0), layer)


def prelu(view: NodeView) -> nn.Module:
    """Convert PRelu with one slope, or one per channel."""
    slopes = view.floats(1)
    channels = view.shape()[1]
    per_channel = slopes.shape[:1] == (channels,) and slopes.numel() == channels
    if slopes.numel() != 1 and not (per_channel and slopes.dim() == len(view.shape()) - 1):
        raise view.refusal(f"slopes of shape {tuple(slopes.shape)}; one, or one per channel")
    layer = nn.PReLU(slopes.numel())
    _fill(view, layer, "weight", slopes.flatten())
    return layer


def _linear(view: NodeView, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    if weight.dim() != 2:
        raise view.refusal(f"a matrix of {weight.dim()} axes; 2 are supported")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    _fill(view, layer, "weight", weight)
    if bias is not None:
        if bias.numel() not in (1, weight.shape[0]):
            raise view.refusal(
                f"a bias of shape {tuple(bias.shape)}; one number per output is needed"
            )
        _fill(view, layer, "bias", bias.flatten().expand(weight.shape[0]))
    return layer


def _fill(view: NodeView, layer: nn.Module, name: str, numbers: Tensor) -> None:
    """Copy numbers into a parameter or buffer of exactly their shape."""
    slot = getattr(layer, name)
    if slot.shape != numbers.shape:
        raise view.refusal(
            f"{name} has shape {tuple(numbers.shape)}; {tuple(slot.shape)} would fit"
        )
    with torch.no_grad():
        slot.copy_(numbers)


def _two(view: NodeView, name: str, default: tuple[int, int] | None = (1, 1)) -> tuple[int, int]:
    numbers = view.attribute(name, default)
    if numbers is None or len(numbers) != 2 or min(numbers) < 1:
        raise view.refusal(f"{name} is {numbers}; two whole numbers above zero are supported")
    return int(numbers[0]), int(numbers[1])


def _padding(view: NodeView, window: Window) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the padding before and after the plane (ONNX schema of Conv, ``auto_pad``)."""
    mode = view.attribute("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b"VALID"):
        pads = [0] * 4 if mode == b"VALID" else view.attribute("pads", [0] * 4)
        if len(pads) != 4 or min(pads) < 0:
            raise view.refusal(f"pads are {list(pads)}; four numbers, none negative, are supported")
        return (int(pads[0]), int(pads[1])), (int(pads[2]), int(pads[3]))
    totals = []
    for side, kernel, stride, dilation in zip(
        view.shape()[2:], window.kernel, window.strides, window.dilations, strict=True
    ):
        outputs = -(-side // stride)
        totals.append(max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - side))
    small = (totals[0] // 2, totals[1] // 2)
    large = (totals[0] - small[0], totals[1] - small[1])
    return (small, large) if mode == b"SAME_UPPER" else (large, small)


def _around(before: tuple[int, int], after: tuple[int, int], number: float) -> Pad:
    return Pad((before[1], after[1], before[0], after[0]), number)
