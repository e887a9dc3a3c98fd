"""A factored convolution as stock modules, recognised by its layers' names and shapes.

A block is a plain ``nn.Sequential`` of two or three plain ``nn.Conv2d`` with these names, so that
exporters and state dicts need no special case:

    reduce, core, expand   both modes factored; stride, padding and dilation are the core's
    core, expand           only the output channels factored (the input rank is full)
    reduce, core           only the input channels factored
    reduce, expand         a 1x1 convolution in two; stride and padding are reduce's

Another kind of factorisation adds its names here; `compression.factorisation` computes the weights
and decides which convolutions are factored.
"""

from __future__ import annotations

from typing import TypeGuard, cast

from torch import nn

BLOCKS = (
    ("reduce", "core", "expand"),
    ("core", "expand"),
    ("reduce", "core"),
    ("reduce", "expand"),
)


def is_block(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Return whether the module is one of the blocks above, and so can be merged."""
    if type(module) is not nn.Sequential:
        return False
    names = tuple(name for name, _ in module.named_children())
    layers = list(module.children())
    if names not in BLOCKS or not all(_is_plain(layer) for layer in layers):
        return False
    spatial = spatial_part(module)
    return all(layer.bias is None for layer in layers[:-1]) and all(
        layer is spatial or _is_channel_mix(layer) for layer in layers
    )


def spatial_part(block: nn.Sequential) -> nn.Conv2d:
    """Return the convolution of a block that has its stride, padding and dilation."""
    layers = dict(block.named_children())
    return cast(nn.Conv2d, layers.get("core", layers.get("reduce")))


def block_shape(block: nn.Sequential) -> tuple[int, int, int, int]:
    """Return [out, in, kh, kw] of the one kernel that a block multiplies out to."""
    layers = [cast(nn.Conv2d, layer) for layer in block.children()]
    height, width = spatial_part(block).kernel_size
    return layers[-1].out_channels, layers[0].in_channels, height, width


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"


def _is_channel_mix(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.padding in ((0, 0), "same", "valid")
    )
