"""What decides how long a layer takes: its shape and that of its input, not its weights."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from edgeclean.states import JsonValue

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Signature:
    """One convolution's shape; layers of one signature take one time.

    Attributes:
        channels_out: of the convolution.
        channels_in: likewise.
        kernel: height and width.
        stride: likewise.
        dilation: likewise.
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
        """Whether it is a 1x1 convolution, which has a single rank."""
        return self.kernel == (1, 1)

    def image_out(self) -> Pair:
        """Height and width of the layer's output."""
        top, left, bottom, right = self.padding
        sides = zip(self.image, (top + bottom, left + right), strict=True)
        height, width = (
            (side + padding - dilation * (kernel - 1) - 1) // stride + 1
            for (side, padding), dilation, kernel, stride in zip(
                sides, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    def as_json(self) -> dict[str, JsonValue]:
        """The fields; pairs as lists."""
        return {
            name: list(field) if isinstance(field, tuple) else field
            for name, field in asdict(self).items()
        }


def layer_signatures(module: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, Signature]:
    """The signatures of all convolutions, by name, from one run over an image of zeros.

    A layer that does not run exactly once is left out: no one signature tells its time.
    """
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d)]
    probe = copy.deepcopy(module).eval()  # hooks are never put on the caller's module
    images: dict[str, list[Pair]] = {name: [] for name in names}

    def note(name: str) -> None:
        def hook(
            _layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any], _output: Tensor
        ) -> None:
            entered = inputs[0] if inputs else named["input"]
            images[name].append((int(entered.shape[2]), int(entered.shape[3])))

        probe.get_submodule(name).register_forward_hook(hook, with_kwargs=True)

    for name in names:
        note(name)
    weight = next(probe.parameters())
    with torch.no_grad():
        probe(torch.zeros(1, *input_shape, device=weight.device, dtype=weight.dtype))
    return {
        name: signature_of(cast(nn.Conv2d, module.get_submodule(name)), seen[0])
        for name, seen in images.items()
        if len(seen) == 1
    }


def signature_of(conv: nn.Conv2d, image: Pair) -> Signature:
    """Of a convolution on an input of this height and width."""
    return Signature(
        channels_out=conv.out_channels,
        channels_in=conv.in_channels,
        kernel=_pair(conv.kernel_size),
        stride=_pair(conv.stride),
        dilation=_pair(conv.dilation),
        padding=_padding(conv),
        image=image,
    )


def _pair(extent: tuple[int, ...]) -> Pair:
    return extent[0], extent[1]


def _padding(conv: nn.Conv2d) -> tuple[int, int, int, int]:
    """PyTorch's "same" puts the odd zero below and on the right."""
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
