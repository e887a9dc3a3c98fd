"""ONNX operators that normalise: by stored statistics, or by those of the image itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from edgeclean.load.onnx.modules import ChannelNorm
from edgeclean.load.onnx.node import NodeView, fill


def batch_norm(view: NodeView) -> nn.Module:
    """Convert BatchNormalization with stored statistics."""
    if view.attribute("training_mode", 0) or any(view.node.output[1:]):
        raise view.refusal("it is in training mode; export the network in evaluation mode")
    scale = view.floats(1)
    layer = nn.BatchNorm2d if len(view.shape()) == 4 else nn.BatchNorm1d
    norm = layer(scale.numel(), eps=view.attribute("epsilon", 1e-5))
    for index, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
        fill(view, norm, name, view.floats(index))
    return norm


def instance_norm(view: NodeView) -> nn.Module:
    """Convert InstanceNormalization: a group for each channel."""
    scale = view.floats(1)
    if math.prod(view.shape()[2:]) < 2:
        raise view.refusal(f"a value of {view.shape()}; planes of two numbers are needed")
    norm = nn.GroupNorm(scale.numel(), scale.numel(), eps=view.attribute("epsilon", 1e-5))
    fill(view, norm, "weight", scale)
    fill(view, norm, "bias", view.floats(2))
    return norm


def group_norm(view: NodeView) -> nn.Module:
    """Convert GroupNormalization (from opset 21; the one before it is deprecated)."""
    groups, channels = int(view.attribute("num_groups")), view.shape()[1]
    if view.attribute("stash_type", 1) != 1:
        raise view.refusal("stash_type must be float32")
    norm = nn.GroupNorm(groups, channels, eps=view.attribute("epsilon", 1e-5))
    for index, name in ((1, "weight"), (2, "bias")):
        fill(view, norm, name, view.floats(index))
    return norm


def layer_norm(view: NodeView) -> nn.Module:
    """Convert LayerNormalization and RMSNormalization over an axis and all behind it."""
    shape = view.shape()
    normal = list(shape[view.axis(int(view.attribute("axis", -1))) :])
    eps = view.attribute("epsilon", 1e-5)
    if view.node.op_type == "RMSNormalization":
        norm: nn.Module = nn.RMSNorm(normal, eps=eps)
    else:
        norm = nn.LayerNorm(normal, eps=eps, bias=view.given(2))
    fill(view, norm, "weight", torch.broadcast_to(view.floats(1), normal))
    if view.given(2):
        fill(view, norm, "bias", torch.broadcast_to(view.floats(2), normal))
    return norm


def channel_norm(view: NodeView) -> nn.Module:
    """Convert LRN, local response normalisation over neighbouring channels."""
    size = int(view.attribute("size"))
    if not 1 <= size <= 2 * view.shape()[1] or size % 2 == 0 or len(view.shape()) != 4:
        raise view.refusal(f"size {size} for planes {view.shape()}; it must be odd")
    alpha, beta = view.attribute("alpha", 1e-4), view.attribute("beta", 0.75)
    return ChannelNorm(size, alpha, beta, view.attribute("bias", 1.0))


def mean_variance(view: NodeView) -> nn.Module:
    """Convert MeanVarianceNormalization over planes, each alone or all of an image together.

    ONNX adds 1e-9 to the deviation; here its square is added to the variance.
    """
    shape = view.shape()
    rank = len(shape)
    axes = {axis + rank if axis < 0 else axis for axis in view.attribute("axes")}
    planes = set(range(2, rank))
    if axes not in (planes, planes | {1}) or math.prod(shape[2:]) < 2:
        raise view.refusal(
            f"axes {sorted(axes)[:8]} of {shape}; only planes of two numbers or more, each alone "
            "or all of an image together, are read"
        )
    return nn.GroupNorm(shape[1] if axes == planes else 1, shape[1], eps=1e-18, affine=False)


NORMS: dict[str, Callable[[NodeView], nn.Module]] = {
    "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm,
    "InstanceNormalization": instance_norm,
    "LRN": channel_norm,
    "LayerNormalization": layer_norm,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": layer_norm,
}
