"""The shape of one convolution and of its input, which decides its cost and its time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from torch import nn

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ConvShape:
    """The shape of one ungrouped convolution; layers of one shape take the same time.

    Attributes:
        channels_out: the convolution's output channels.
        channels_in: its input channels.
        kernel: height and width.
        stride: its stride.
        dilation: its dilation.
        padding: zeros above, on the left, below, and on the right: the order of ONNX.
        image: height and width of the layer's input.
    """

    channels_out: int
    channels_in: int
    kernel: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[int, int, int, int]
    image: Pair

    @property
    def pointwise(self) -> bool:
        """True for a 1x1 convolution, which has a single rank."""
        return self.kernel == (1, 1)

    @property
    def channels(self) -> Pair:
        """The numbers of channels, (out, in)."""
        return self.channels_out, self.channels_in

    @property
    def image_out(self) -> Pair:
        """The height and width of the layer's output, in pixels."""
        top, left, bottom, right = self.padding
        sides = zip(self.image, (top + bottom, left + right), strict=True)
        height, width = (
            (side + padding - dilation * (kernel - 1) - 1) // stride + 1
            for (side, padding), dilation, kernel, stride in zip(
                sides, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    @property
    def params(self) -> int:
        """The number of weights; the bias is not counted."""
        return self.channels_out * self.channels_in * prod(self.kernel)

    @property
    def macs(self) -> int:
        """The multiply-accumulates of one image."""
        return self.params * prod(self.image_out)

    @property
    def vertical(self) -> ConvShape:
        """The same convolution along the height alone: its kernel is one pixel wide."""
        (kernel, _), (stride, _), (dilation, _) = self.kernel, self.stride, self.dilation
        top, _, bottom, _ = self.padding
        return replace(
            self,
            kernel=(kernel, 1),
            stride=(stride, 1),
            dilation=(dilation, 1),
            padding=(top, 0, bottom, 0),
        )

    @property
    def horizontal(self) -> ConvShape:
        """The same convolution along the width alone: its kernel is one pixel high."""
        (_, kernel), (_, stride), (_, dilation) = self.kernel, self.stride, self.dilation
        _, left, _, right = self.padding
        return replace(
            self,
            kernel=(1, kernel),
            stride=(1, stride),
            dilation=(1, dilation),
            padding=(0, left, 0, right),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object; pairs become lists."""
        return {
            name: list(field) if isinstance(field, tuple) else field
            for name, field in asdict(self).items()
        }


def conv_shape(conv: nn.Conv2d, image: Pair) -> ConvShape:
    """Return the shape of a convolution on an input of this height and width."""
    return ConvShape(
        channels_out=conv.out_channels,
        channels_in=conv.in_channels,
        kernel=pair_of(conv.kernel_size),
        stride=pair_of(conv.stride),
        dilation=pair_of(conv.dilation),
        padding=_padding(conv),
        image=image,
    )


def mix_shape(channels_in: int, channels_out: int, image: Pair) -> ConvShape:
    """Return the shape of a 1x1 convolution of stride 1, which only mixes channels."""
    return ConvShape(
        channels_out=channels_out,
        channels_in=channels_in,
        kernel=(1, 1),
        stride=(1, 1),
        dilation=(1, 1),
        padding=(0, 0, 0, 0),
        image=image,
    )


def pair_of(extent: tuple[int, ...]) -> Pair:
    """Return the two numbers of a 2D layer's extent, which PyTorch's types leave open."""
    return extent[0], extent[1]


def _padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """Return the padding; PyTorch's "same" puts the odd zero below and on the right."""
    if conv.padding == "valid":
        return 0, 0, 0, 0
    if isinstance(conv.padding, str):
        height, width = (
            dilation * (kernel - 1)
            for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)
        )
        return height // 2, width // 2, height - height // 2, width - width // 2
    height, width = conv.padding
    return height, width, height, width
