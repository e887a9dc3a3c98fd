"""ONNX operators with weights, which become convolutions and linear layers of ``torch.nn``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from edgeclean.load.onnx.modules import LinearWithSum, MatMul, SlopedReLU
from edgeclean.load.onnx.moves import Pad
from edgeclean.load.onnx.node import NodeView, fill
from edgeclean.load.onnx.windows import (
    LineWindow,
    Window,
    around,
    given_pads,
    line_padding,
    one,
    padding,
    two,
)


def conv(view: NodeView) -> nn.Module:
    """Convert Conv, over planes or over a line, with constant weights."""
    weight = view.floats(1)
    if weight.dim() == 3:
        return _conv_of_line(view, weight)
    if weight.dim() != 4:
        raise view.refusal(
            f"weights of {weight.dim()} axes; convolutions over one or two axes are read"
        )
    kernel = (weight.shape[2], weight.shape[3])
    window = Window(kernel, two(view, "strides"), two(view, "dilations"))
    before, after = padding(view, window)
    groups = _groups(view, weight)
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
    fill(view, layer, "weight", weight)
    if view.given(2):
        fill(view, layer, "bias", view.floats(2))
    return layer if before == after else nn.Sequential(around(before, after, 0.0), layer)


def _conv_of_line(view: NodeView, weight: Tensor) -> nn.Module:
    """Convert a convolution along one axis, as of signals or of the channels' means (ECA)."""
    window = LineWindow(weight.shape[2], one(view, "strides"), one(view, "dilations"))
    before, after = line_padding(view, window)
    groups = _groups(view, weight)
    layer = nn.Conv1d(
        weight.shape[1] * groups,
        weight.shape[0],
        window.kernel,
        window.stride,
        before if before == after else 0,
        window.dilation,
        groups,
        bias=view.given(2),
    )
    fill(view, layer, "weight", weight)
    if view.given(2):
        fill(view, layer, "bias", view.floats(2))
    return layer if before == after else nn.Sequential(Pad((before, after), 0.0), layer)


def _groups(view: NodeView, weight: Tensor) -> int:
    groups = int(view.attribute("group", 1))
    if groups < 1 or weight.shape[0] % groups:
        raise view.refusal(f"group {groups} does not divide {weight.shape[0]} channels")
    return groups


def conv_transpose(view: NodeView) -> nn.Module:
    """Convert ConvTranspose, over planes, with constant weights; an uneven rim is cut off after."""
    weight = view.floats(1)
    if weight.dim() != 4:
        raise view.refusal(
            f"weights of {weight.dim()} axes; only convolutions of planes are read: put an axis of "
            "one before the last (unsqueeze(2)) and use ConvTranspose2d"
        )
    kernel = (weight.shape[2], weight.shape[3])
    window = Window(kernel, two(view, "strides"), two(view, "dilations"))
    more = view.attribute("output_padding", [0, 0])
    if len(more) != 2 or min(more) < 0:
        raise view.refusal(f"output_padding is {list(more)}; two numbers from zero are supported")
    groups = int(view.attribute("group", 1))
    before, after = _cut(view, window, (int(more[0]), int(more[1])))
    even = before == after
    layer = nn.ConvTranspose2d(
        weight.shape[0],
        weight.shape[1] * groups,
        kernel,
        window.strides,
        before if even else 0,
        (int(more[0]), int(more[1])),
        groups,
        bias=view.given(2),
        dilation=window.dilations,
    )
    fill(view, layer, "weight", weight)
    if view.given(2):
        fill(view, layer, "bias", view.floats(2))
    return layer if even else nn.Sequential(layer, around(_less(before), _less(after), 0.0))


def gemm(view: NodeView) -> nn.Module:
    """Convert Gemm with constant weights: alpha * A B + beta * C, of which C may be a value."""
    if view.attribute("transA", 0):
        raise view.refusal("a transposed input is not supported")
    weight = view.floats(1) if view.attribute("transB", 0) else view.floats(1).transpose(0, -1)
    weight, beta = weight * view.attribute("alpha", 1.0), view.attribute("beta", 1.0)
    if view.given(2) and not view.is_constant(2):
        return LinearWithSum(_linear(view, weight, None), beta)
    return _linear(view, weight, view.floats(2) * beta if view.given(2) else None)


def matmul(view: NodeView) -> nn.Module:
    """Convert MatMul: with a constant matrix behind a value it is a linear layer."""
    if view.is_constant(1) and view.floats(1).dim() == 2:
        return _linear(view, view.floats(1).transpose(0, 1), None)
    constants = view.constants_of(elementwise=False)
    if any(len(view.shape(place)) < 3 for place in range(2) if place not in constants):
        raise view.refusal("a value of rows alone as the one or other side mixes a batch")
    for number in constants.values():
        if number.dim() < 1 or (number.dim() > 2 and number.shape[0] != 1):
            raise view.refusal(
                f"a matrix of {number.dim()} axes; 2 are supported, or more if the first is one"
            )
    return MatMul(constants)


def prelu(view: NodeView) -> nn.Module:
    """Convert PRelu with one slope, one per channel, or one for each place of an image."""
    slopes, (_, *sides) = view.floats(1), view.shape()
    if slopes.dim() == len(view.shape()) and slopes.shape[0] == 1:
        slopes = slopes[0]
    own = [1] * (len(sides) - slopes.dim()) + list(slopes.shape)
    fits = len(own) == len(sides) and all(
        one in (1, side) for one, side in zip(own, sides, strict=True)
    )
    if not fits:
        raise view.refusal(f"slopes of shape {tuple(slopes.shape)} for images of {tuple(sides)}")
    if slopes.numel() not in (1, own[0]):
        return SlopedReLU(slopes)
    layer = nn.PReLU(slopes.numel())
    fill(view, layer, "weight", slopes.flatten())
    return layer


def _linear(view: NodeView, weight: Tensor, bias: Tensor | None) -> nn.Linear:
    if weight.dim() != 2:
        raise view.refusal(f"a matrix of {weight.dim()} axes; 2 are supported")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    fill(view, layer, "weight", weight)
    if bias is not None:
        if bias.numel() not in (1, weight.shape[0]):
            raise view.refusal(
                f"a bias of shape {tuple(bias.shape)}; one number per output is needed"
            )
        fill(view, layer, "bias", bias.flatten().expand(weight.shape[0]))
    return layer


def _less(pads: tuple[int, int]) -> tuple[int, int]:
    return -pads[0], -pads[1]


def _cut(
    view: NodeView, window: Window, more: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what a transposed convolution cuts off each side (ONNX schema of ConvTranspose)."""
    mode = view.attribute("auto_pad", b"NOTSET")
    wanted = view.attribute("output_shape")
    if wanted is None and mode in (b"NOTSET", b"VALID"):
        return given_pads(view, mode)
    if wanted is None:
        wanted = [side * step for side, step in zip(view.shape()[2:], window.strides, strict=True)]
    totals = []
    for axis, side in enumerate(view.shape()[2:]):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        whole = window.strides[axis] * (side - 1) + more[axis] + reach
        totals.append(whole - int(wanted[-2:][axis]))
    if min(totals) < 0:
        raise view.refusal(f"output_shape {list(wanted)} is larger than what its windows reach")
    small = (totals[0] // 2, totals[1] // 2)
    large = (totals[0] - small[0], totals[1] - small[1])
    return (small, large) if mode == b"SAME_UPPER" else (large, small)


LAYERS: dict[str, Callable[[NodeView], nn.Module]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "PRelu": prelu,
}
