"""A factored convolution as stock modules, recognised by its layers' names and shapes.

A block is a plain ``nn.Sequential`` of two or three plain ``nn.Conv2d`` with these names, so that
exporters and state dicts need no special case:

    reduce, core, expand   both modes factored; stride, padding and dilation are the core's
    core, expand           only the output channels factored (the input rank is full)
    reduce, core           only the input channels factored
    reduce, expand         a 1x1 convolution in two; stride and padding are reduce's
    core_vertical, core_horizontal
                           spatially separable: Kx1 and 1xK, in either order; each has the stride,
                           padding and dilation of its own axis

Another kind of factorisation adds its names here; `compression.factorisation` computes the weights
and decides which convolutions are factored.
"""

from __future__ import annotations

from typing import TypeGuard, cast

from torch import nn

VERTICAL, HORIZONTAL = "core_vertical", "core_horizontal"
BLOCKS = (
    ("reduce", "core", "expand"),
    ("core", "expand"),
    ("reduce", "core"),
    ("reduce", "expand"),
)
SEPARABLE = ((VERTICAL, HORIZONTAL), (HORIZONTAL, VERTICAL))


def is_block(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Return whether the module is one of the blocks above, and so can be merged."""
    if type(module) is not nn.Sequential:
        return False
    layers = [layer for layer in module.children() if _is_plain(layer)]
    if len(layers) < len(module) or any(layer.bias is not None for layer in layers[:-1]):
        return False
    names = _names(module)
    if names in SEPARABLE:
        return _are_of_one_axis_each(module)
    spatial = _spatial_part(module) if names in BLOCKS else None
    return spatial is not None and all(
        layer is spatial or _is_channel_mix(layer) for layer in layers
    )


def is_separable(block: nn.Sequential) -> bool:
    """Return whether a block is a spatially separable one."""
    return _names(block) in SEPARABLE


def whole_conv(block: nn.Sequential) -> nn.Conv2d:
    """Return the one convolution that a block stands for, on the meta device: without weights."""
    layers = [cast(nn.Conv2d, layer) for layer in block.children()]
    if is_separable(block):
        named = dict(block.named_children())
        vertical, horizontal = cast(nn.Conv2d, named[VERTICAL]), cast(nn.Conv2d, named[HORIZONTAL])
    else:
        vertical = horizontal = _spatial_part(block)
    padding: str | tuple[int, int]
    if isinstance(vertical.padding, str) or isinstance(horizontal.padding, str):
        padding = str(vertical.padding)
    else:
        padding = vertical.padding[0], horizontal.padding[1]
    return nn.Conv2d(
        layers[0].in_channels,
        layers[-1].out_channels,
        (vertical.kernel_size[0], horizontal.kernel_size[1]),
        stride=(vertical.stride[0], horizontal.stride[1]),
        padding=padding,
        dilation=(vertical.dilation[0], horizontal.dilation[1]),
        bias=layers[-1].bias is not None,
        device="meta",
    )


def block_shape(block: nn.Sequential) -> tuple[int, int, int, int]:
    """Return [out, in, kh, kw] of the one kernel that a block multiplies out to."""
    out, channels_in, height, width = whole_conv(block).weight.shape
    return out, channels_in, height, width


def _names(module: nn.Sequential) -> tuple[str, ...]:
    return tuple(name for name, _ in module.named_children())


def _spatial_part(block: nn.Sequential) -> nn.Conv2d:
    """Return the convolution of a block of channel modes that has its stride and padding."""
    layers = dict(block.named_children())
    return cast(nn.Conv2d, layers.get("core", layers.get("reduce")))


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"


def _is_channel_mix(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride == (1, 1)
        and layer.padding in ((0, 0), "same", "valid")
    )


def _are_of_one_axis_each(block: nn.Sequential) -> bool:
    """Return whether each of a separable block's convolutions leaves the other axis alone."""
    layers = dict(block.named_children())
    paddings = []
    for name, other in ((VERTICAL, 1), (HORIZONTAL, 0)):
        layer = cast(nn.Conv2d, layers[name])
        if layer.kernel_size[other] != 1 or layer.stride[other] != 1:
            return False
        if not isinstance(layer.padding, str) and layer.padding[other] != 0:
            return False
        paddings.append(layer.padding)
    return paddings[0] == paddings[1] or not any(isinstance(one, str) for one in paddings)
