"""Sliding windows of ONNX operators, and the poolings that are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.load.onnx.modules import Arithmetic, PowerPool
from edgeclean.load.onnx.moves import Pad
from edgeclean.load.onnx.node import NodeView

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """The window of a convolution or pooling; height comes before width everywhere."""

    kernel: Pair
    strides: Pair
    dilations: Pair


@dataclass(frozen=True, slots=True)
class LineWindow:
    """The window of a convolution or pooling along one axis."""

    kernel: int
    stride: int
    dilation: int


def pool(view: NodeView) -> nn.Module:
    """Convert MaxPool, AveragePool and LpPool over planes, lines and (means only) volumes."""
    if len(view.shape()) != 4:
        return _other_pool(view)
    window = Window(two(view, "kernel_shape", None), two(view, "strides"), two(view, "dilations"))
    before, after = padding(view, window)
    ceil = bool(view.attribute("ceil_mode", 0))
    # Torch's own layers pad evenly, and by half a window at most.
    plain = before == after and all(
        2 * pad <= side for pad, side in zip(before, window.kernel, strict=True)
    )
    kind = view.node.op_type
    if kind == "MaxPool":
        if plain:
            return nn.MaxPool2d(
                window.kernel, window.strides, before, window.dilations, False, ceil
            )
        after = _reached(view, window, before, after) if ceil else after
        whole = nn.MaxPool2d(window.kernel, window.strides, 0, window.dilations)
        return nn.Sequential(around(before, after, -math.inf), whole)
    if window.dilations != (1, 1):
        raise view.refusal("dilations of a mean are not supported")
    counted = bool(view.attribute("count_include_pad", 0))
    if kind == "AveragePool" and plain:
        return nn.AvgPool2d(window.kernel, window.strides, before, ceil, counted)
    reached = _reached(view, window, before, after) if ceil else after
    rim = around(before, reached, 0.0)
    if kind == "LpPool":
        return nn.Sequential(rim, PowerPool(int(view.attribute("p", 2)), *window_sides(window)))
    layer = nn.AvgPool2d(window.kernel, window.strides)
    shares = _shares(view, layer, rim, (before, after, reached), counted=counted)
    return nn.Sequential(rim, layer, *([] if shares is None else [Arithmetic("Mul", shares)]))


def _other_pool(view: NodeView) -> nn.Module:
    """Convert a pooling along one axis, or a mean over three, by torch's own layers."""
    axes, kind = len(view.shape()) - 2, view.node.op_type
    kernel = [int(side) for side in view.attribute("kernel_shape", [])]
    strides = [int(step) for step in view.attribute("strides", [1] * axes)]
    pads = [int(width) for width in view.attribute("pads", [0] * 2 * axes)]
    known = (axes == 1 and kind != "LpPool") or (axes == 3 and kind == "AveragePool")
    even = pads[:axes] == pads[axes:] and len(pads) == 2 * axes and min(pads, default=-1) >= 0
    fits = len(kernel) == len(strides) == axes and min(kernel + strides, default=0) >= 1
    plain = set(view.attribute("dilations", [1])) == {1}
    plain &= view.attribute("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    if not (known and even and fits and plain):
        raise view.refusal(
            f"windows of {kernel} with pads {pads} on a value of {len(view.shape())} axes; give "
            "both ends the same pads and no dilation, or pool over planes of 4 axes"
        )
    if any(2 * pad > side for pad, side in zip(pads, kernel, strict=False)):
        raise view.refusal(f"pads {pads} are more than half of the window {kernel}; pad before it")
    ceil = bool(view.attribute("ceil_mode", 0))
    if kind == "MaxPool":
        return nn.MaxPool1d(kernel[0], strides[0], pads[0], ceil_mode=ceil)
    counted = bool(view.attribute("count_include_pad", 0))
    if axes == 1:
        return nn.AvgPool1d(kernel[0], strides[0], pads[0], ceil, counted)
    deep, high, wide = zip(kernel, strides, pads[:axes], strict=True)
    sides, steps, around_it = zip(deep, high, wide, strict=True)
    return nn.AvgPool3d(sides, steps, around_it, ceil, counted)


def one(view: NodeView, name: str) -> int:
    """Return an attribute of one whole number above zero, which is 1 where it is left out.

    Raises:
        InputRejectedError: it is something else.
    """
    numbers = view.attribute(name, (1,))
    if len(numbers) != 1 or min(numbers) < 1:
        raise view.refusal(f"{name} is {list(numbers)}; one whole number above zero is supported")
    return int(numbers[0])


def line_padding(view: NodeView, window: LineWindow) -> tuple[int, int]:
    """Return the padding before and after a line, as `padding` does for planes.

    Raises:
        InputRejectedError: ``pads`` are not two numbers from zero.
    """
    mode = view.attribute("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b"VALID"):
        pads = [0, 0] if mode == b"VALID" else view.attribute("pads", [0, 0])
        if len(pads) != 2 or min(pads) < 0:
            raise view.refusal(f"pads are {list(pads)}; two numbers, none negative, are supported")
        return int(pads[0]), int(pads[1])
    side = view.shape()[2]
    reach = (-(-side // window.stride) - 1) * window.stride
    total = max(0, reach + (window.kernel - 1) * window.dilation + 1 - side)
    small, large = total // 2, total - total // 2
    return (small, large) if mode == b"SAME_UPPER" else (large, small)


def window_sides(window: Window) -> tuple[Pair, Pair]:
    """Return the window's kernel and strides."""
    return window.kernel, window.strides


def two(view: NodeView, name: str, default: Pair | None = (1, 1)) -> Pair:
    """Return an attribute of two whole numbers above zero.

    Raises:
        InputRejectedError: it is something else.
    """
    numbers = view.attribute(name, default)
    if numbers is None or len(numbers) != 2 or min(numbers) < 1:
        raise view.refusal(f"{name} is {numbers}; two whole numbers above zero are supported")
    return int(numbers[0]), int(numbers[1])


def padding(view: NodeView, window: Window) -> tuple[Pair, Pair]:
    """Return the padding before and after the plane (ONNX schema of Conv, ``auto_pad``).

    Raises:
        InputRejectedError: ``pads`` are not four numbers from zero.
    """
    mode = view.attribute("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b"VALID"):
        return given_pads(view, mode)
    totals = []
    for side, kernel, stride, dilation in zip(
        view.shape()[2:], window.kernel, window.strides, window.dilations, strict=True
    ):
        outputs = -(-side // stride)
        totals.append(max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - side))
    small = (totals[0] // 2, totals[1] // 2)
    large = (totals[0] - small[0], totals[1] - small[1])
    return (small, large) if mode == b"SAME_UPPER" else (large, small)


def given_pads(view: NodeView, mode: bytes) -> tuple[Pair, Pair]:
    """Return the padding that ``pads`` says, which is none in the mode VALID.

    Raises:
        InputRejectedError: ``pads`` are not four numbers from zero.
    """
    pads = [0] * 4 if mode == b"VALID" else view.attribute("pads", [0] * 4)
    if len(pads) != 4 or min(pads) < 0:
        raise view.refusal(f"pads are {list(pads)}; four numbers, none negative, are supported")
    return (int(pads[0]), int(pads[1])), (int(pads[2]), int(pads[3]))


def around(before: Pair, after: Pair, number: float) -> Pad:
    """Return what puts a constant around planes, or cuts off where a width is below zero."""
    return Pad((before[1], after[1], before[0], after[0]), number)


def _reached(view: NodeView, window: Window, before: Pair, after: Pair) -> Pair:
    """Return the padding behind the plane up to where the last window of ``ceil_mode`` reaches.

    As in torch and ONNX Runtime, no window begins behind the plane.
    """
    reached = []
    for axis, side in enumerate(view.shape()[2:]):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        stride, start = window.strides[axis], before[axis]
        steps = -(-(start + side + after[axis] - reach) // stride)
        if steps * stride >= start + side:
            steps -= 1
        reached.append(steps * stride + reach - side - start)
    return reached[0], reached[1]


def _shares(
    view: NodeView, layer: nn.AvgPool2d, rim: Pad, pads: tuple[Pair, Pair, Pair], *, counted: bool
) -> Tensor | None:
    """Return what a mean over whole windows is multiplied by, where not all of them counts."""
    before, after, reached = pads
    plane = torch.ones(1, 1, *view.shape()[2:])
    if counted:
        beyond = (reached[0] - after[0], reached[1] - after[1])
        counts = functional.pad(around(before, after, 1.0)(plane), (0, beyond[1], 0, beyond[0]))
    else:
        counts = rim(plane)
    share: Tensor = layer(counts)
    return None if bool((share == 1).all()) else 1 / share


WINDOWS: dict[str, Callable[[NodeView], nn.Module]] = dict.fromkeys(
    ("AveragePool", "LpPool", "MaxPool"), pool
)
