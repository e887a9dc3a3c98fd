"""The cost of a network before anything is measured: parameters and multiply-accumulates."""

from __future__ import annotations

from torch import nn

from edgeclean.networks.layers import trace_layers


def count_params(module: nn.Module) -> int:
    """Count all parameters; buffers (BatchNorm statistics) are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Count multiply-accumulates of every convolution and linear layer for one image.

    A layer that runs twice counts twice. Biases, normalisation and activations are left out, as
    usual in the field.
    """
    return sum(layer.macs for layer in trace_layers(module, input_shape))
