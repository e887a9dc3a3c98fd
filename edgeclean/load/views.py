"""Let networks that flatten by ``x.view(n, -1)``, as tutorials do, take channels-last images.

A view needs the memory order of the images that the code was written for; channels-last images,
which are faster, have another. The same numbers in a new tensor serve as well.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from edgeclean.networks.autocast import channels_last


def free_of_layout_(module: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """Make a network take channels-last images, in place, if only its code prevents it.

    Its names, its weights and what it computes stay the same; its class becomes one of the same
    name. A network that takes such images already is left alone.

    Args:
        module: a module in evaluation mode, which takes an image of ``input_shape`` [c, h, w].
        input_shape: channels, height and width of its images.
    """
    images = torch.zeros(1, *input_shape).to(memory_format=torch.channels_last)
    try:
        probe = channels_last(copy.deepcopy(module))
        with torch.no_grad():
            probe(images)
    except RuntimeError:
        module.__class__ = _reshaping(type(module))


def _reshaping(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the same class with a forward pass that copies where a view is impossible."""

    def forward(self: nn.Module, *inputs: Any, **named: Any) -> Any:
        # Tracing fails in such a mode, and is of contiguous images.
        if torch.jit.is_tracing():  # type: ignore[no-untyped-call, attr-defined]
            return kind.forward(self, *inputs, **named)
        with _ViewOrCopy():
            return kind.forward(self, *inputs, **named)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


class _ViewOrCopy(TorchFunctionMode):
    """A mode in which ``view`` returns a copy where the order of the memory allows no view."""

    def __torch_function__(
        self, function: Any, types: Any, inputs: tuple[Any, ...] = (), named: Any = None
    ) -> Any:
        """Run ``function``; see the class."""
        if function is not Tensor.view:
            return function(*inputs, **(named or {}))
        try:
            return function(*inputs, **(named or {}))
        except RuntimeError:
            return Tensor.reshape(*inputs, **(named or {}))
