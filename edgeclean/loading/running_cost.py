"""What running a network once takes, found without running it: shapes only, no numbers.

The image shape comes with the checkpoint, in a few bytes of text: 4096 x 4096 images would make a
network of a megabyte take the machine's memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from edgeclean.cost import count_macs
from edgeclean.errors import InputRejectedError
from edgeclean.loading.input_guard import LoadLimits


def check_running_cost(
    module: nn.Module, input_shape: tuple[int, int, int], limits: LoadLimits
) -> None:
    """Refuse a network that is dear to run on one image of this shape.

    A network that cannot run on shapes alone, or not on this one, is let through: what runs it
    next says why.

    Raises:
        InputRejectedError: its layers put out more than ``limits.activations`` numbers, or take
            more than ``limits.macs`` multiply-accumulates.
    """
    try:
        activations, macs = _cost(copy.deepcopy(module).to("meta"), input_shape)
    except Exception:  # noqa: BLE001 - a module that does not fit raises what it likes
        return
    if activations > limits.activations or macs > limits.macs:
        raise InputRejectedError(
            f"one image of {'x'.join(map(str, input_shape))} takes {activations} activations and "
            f"{macs} multiply-accumulates; the limits are activations {limits.activations} and "
            f"macs {limits.macs}"
        )


def _cost(module: nn.Module, input_shape: tuple[int, int, int]) -> tuple[int, int]:
    activations = 0

    def count(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal activations
        activations += output.numel() if isinstance(output, Tensor) else 0

    leaves = [layer for layer in module.modules() if not any(layer.children())]
    for layer in leaves:
        layer.register_forward_hook(count)
    with torch.no_grad():
        macs = count_macs(module, input_shape)
    return activations, macs
