"""The cost of running a network once, bounded while it runs, before each layer.

The image shape comes with the checkpoint, in a few bytes of text: 4096 x 4096 images would make a
network of a megabyte take the machine's memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits


@contextmanager
def bounded_cost(
    module: nn.Module, input_shape: tuple[int, int, int], limits: LoadLimits
) -> Iterator[None]:
    """Stop the module, within the context, where one image takes more than the limits.

    Convolutions and linear layers are counted before they run, the rest after it: what they put
    out is no larger than what they got, but for layers that enlarge images.

    Raises:
        InputRejectedError: its layers put out more than ``limits.activations`` numbers, or take
            more than ``limits.macs`` multiply-accumulates.
    """
    bill = _Bill(input_shape, limits)
    bill.add(math.prod(input_shape), 0)
    handles = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_pre_hook(bill.before, with_kwargs=True))
        elif not any(layer.children()):
            handles.append(layer.register_forward_hook(bill.after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Bill:
    """The activations and multiply-accumulates of the layers so far."""

    def __init__(self, input_shape: tuple[int, int, int], limits: LoadLimits) -> None:
        self._image = "x".join(map(str, input_shape))
        self._limits = limits
        self._activations = self._macs = 0

    def add(self, activations: int, macs: int) -> None:
        self._activations += activations
        self._macs += macs
        limits = self._limits
        if self._activations > limits.activations or self._macs > limits.macs:
            raise InputRejectedError(
                f"one image of {self._image} takes {self._activations} activations and "
                f"{self._macs} multiply-accumulates before the network has ended; the limits are "
                f"activations {limits.activations} and macs {limits.macs}"
            )

    def before(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101 - the hooked kinds
        images = inputs[0] if inputs else named.get("input")
        if not isinstance(images, Tensor) or not images.dim():
            return  # no image: the layer itself refuses it or not
        if isinstance(layer, nn.Linear):
            activations = images.numel() // max(1, images.shape[-1]) * layer.out_features
        else:
            batch = len(images) if images.dim() == 4 else 1
            activations = batch * layer.out_channels * _plane(layer, images.shape[-2:])
        self.add(activations, activations * layer.weight[0].numel())

    def after(self, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        self.add(output.numel() if isinstance(output, Tensor) else 0, 0)


def _plane(layer: nn.Conv2d, sides: torch.Size) -> int:
    """Return height times width of a convolution's output; see the formula of `nn.Conv2d`."""
    plane = 1
    for axis, side in enumerate(sides):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        # "same" keeps the side, "valid" pads nothing.
        pads = {"same": reach, "valid": 0}
        around = (
            pads[layer.padding] if isinstance(layer.padding, str) else 2 * int(layer.padding[axis])
        )
        plane *= max(0, (side + around - reach - 1) // layer.stride[axis] + 1)
    return plane
