"""Stock layers for the calls of a graph that multiply by constant weights, or normalise by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

_aten = torch.ops.aten
_CONVOLUTIONS: dict[Any, Callable[..., nn.Module]] = {
    _aten.conv1d.default: nn.Conv1d,
    _aten.conv1d.padding: nn.Conv1d,
    _aten.conv2d.default: nn.Conv2d,
    _aten.conv2d.padding: nn.Conv2d,
    _aten.conv3d.default: nn.Conv3d,
    _aten.conv3d.padding: nn.Conv3d,
    _aten.conv_transpose1d.default: nn.ConvTranspose1d,
    _aten.conv_transpose2d.input: nn.ConvTranspose2d,
    _aten.conv_transpose3d.input: nn.ConvTranspose3d,
}
_NORM = _aten._native_batch_norm_legit_no_training.default
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
# The arguments of a layer: what it takes from the images, and the weight that it is called after.
_TAKEN: dict[Any, tuple[str, str]] = {
    **dict.fromkeys(_CONVOLUTIONS, ("input", "weight")),
    _aten.linear.default: ("input", "weight"),
    _aten.matmul.default: ("self", "other"),
    _aten.mm.default: ("self", "mat2"),
    _aten.addmm.default: ("mat1", "mat2"),
    _NORM: ("input", "running_mean"),
}


def taken_by(target: Any, given: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the names of the input and of the weight of a call that a stock layer can make.

    Args:
        target: the function that is called.
        given: its arguments by name: constant tensors, nodes for what is computed from images, and
            plain values.

    Returns:
        None where no layer does this: weights are computed, or are of a shape no layer has.
    """
    if target not in _TAKEN:
        return None
    taken, named = _TAKEN[target]
    if [name for name, one in given.items() if isinstance(one, fx.Node)] != [taken]:
        return None
    weight = given[named]
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return None
    convolution = target in _CONVOLUTIONS or target is _NORM
    if not convolution and (weight.dim() != 2 or given.get("alpha", 1) != 1):
        return None
    bias = given.get("self", given.get("bias")) if target is not _NORM else None
    if isinstance(bias, Tensor) and (bias.dim() != 1 or given.get("beta", 1) != 1):
        return None
    return taken, named


def stock_layer(
    target: Any,
    given: Mapping[str, Any],
    axes: int,
    parameter: Callable[[Tensor], nn.Parameter],
) -> nn.Module:
    """Return the layer that makes this call, for which `taken_by` has names.

    Args:
        target: the function that is called.
        given: its arguments by name.
        axes: the axes of its input.
        parameter: returns the parameter that a tensor becomes, the same one at every call.
    """
    if target in _CONVOLUTIONS:
        return _convolution(_CONVOLUTIONS[target], given, parameter)
    if target is _NORM:
        return _batch_norm(given, axes, parameter)
    if target is _aten.linear.default:
        weight, bias = given["weight"], given["bias"]
        turned = parameter(weight)
    else:
        weight = given[_TAKEN[target][1]].T
        bias = given["self"] if target is _aten.addmm.default else None
        turned = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    return _filled(layer, turned, bias, parameter)


def _convolution(
    kind: Callable[..., nn.Module],
    given: Mapping[str, Any],
    parameter: Callable[[Tensor], nn.Parameter],
) -> nn.Module:
    weight, groups, bias = given["weight"], int(given["groups"]), given["bias"]
    axes = weight.dim() - 2
    transposed = "output_padding" in given
    channels = weight.shape[1] * groups, weight.shape[0]
    more = {"output_padding": _spread(given["output_padding"], axes)} if transposed else {}
    layer = kind(
        *(reversed(channels) if transposed else channels),
        tuple(weight.shape[2:]),
        stride=_spread(given["stride"], axes),
        padding=_spread(given["padding"], axes),
        dilation=_spread(given["dilation"], axes),
        groups=groups,
        bias=bias is not None,
        device="meta",
        **more,
    )
    return _filled(layer, parameter(weight), bias, parameter)


def _batch_norm(
    given: Mapping[str, Any], axes: int, parameter: Callable[[Tensor], nn.Parameter]
) -> nn.Module:
    mean, variance = given["running_mean"], given["running_var"]
    scale, shift = given["weight"], given["bias"]
    affine = scale is not None or shift is not None
    layer = _NORMS[axes](len(mean), eps=given["eps"], momentum=given["momentum"], affine=affine)
    for buffer, numbers in ((layer.running_mean, mean), (layer.running_var, variance)):
        assert buffer is not None  # noqa: S101 - it keeps statistics
        buffer.copy_(numbers)
    if scale is not None:
        layer.weight = parameter(scale)
    if shift is not None:
        layer.bias = parameter(shift)
    return layer.eval()


def _filled(
    layer: nn.Module,
    weight: nn.Parameter,
    bias: Tensor | None,
    parameter: Callable[[Tensor], nn.Parameter],
) -> nn.Module:
    layer.weight = weight
    if bias is not None:
        layer.bias = parameter(bias)
    return layer.eval()


def _spread(numbers: Any, axes: int) -> Any:
    """Return one number for each axis; words such as "same" stay."""
    if isinstance(numbers, str):
        return numbers
    listed = [numbers] if isinstance(numbers, int) else [int(one) for one in numbers]
    return tuple(listed * axes if len(listed) == 1 else listed)
