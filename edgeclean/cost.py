"""What a network costs before anything is measured: parameters and multiply-accumulates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def count_params(module: nn.Module) -> int:
    """All parameters; buffers (BatchNorm statistics) are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def layer_macs(module: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-accumulates for one image of every convolution and linear layer, by dotted name.

    A layer that runs twice counts twice. Biases, normalisation and activations are left out, as
    usual in the field.
    """
    macs: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101 - the hooked kinds
            per_output = layer.weight[0].numel()
            macs[name] = macs.get(name, 0) + output[0].numel() * per_output

        return hook

    handles = [
        layer.register_forward_hook(count(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    was_training = module.training
    reference = next(module.parameters())
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros(1, *input_shape, device=reference.device, dtype=reference.dtype))
    finally:
        module.train(was_training)
        for handle in handles:
            handle.remove()
    return macs


def count_macs(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of the whole network for one image; see `layer_macs`."""
    return sum(layer_macs(module, input_shape).values())
