"""Trained with branches, deployed as one convolution: RepVGG, MobileOne, ACNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.architectures.blocks import conv_bn, pooled_head


class _RepVgg(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, *, deploy: bool) -> None:
        super().__init__()
        self.nonlinearity = nn.ReLU()
        if deploy:
            self.rbr_reparam = nn.Conv2d(inside, outside, 3, stride, 1, bias=True)
            return
        same = inside == outside and stride == 1
        self.rbr_identity = nn.BatchNorm2d(inside) if same else None
        self.rbr_dense = conv_bn(inside, outside, 3, stride, activation=None)
        self.rbr_1x1 = conv_bn(inside, outside, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "rbr_reparam"):
            return self.nonlinearity(self.rbr_reparam(x))
        identity = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return self.nonlinearity(self.rbr_dense(x) + self.rbr_1x1(x) + identity)


def _repvgg(classes: int, *, deploy: bool) -> nn.Module:
    widths = ((3, 32, 1), (32, 32, 1), (32, 48, 2), (48, 48, 1), (48, 64, 2))
    blocks = [_RepVgg(*one, deploy=deploy) for one in widths]
    return nn.Sequential(*blocks, pooled_head(64, classes))


def repvgg(classes: int) -> nn.Module:
    """Ding et al. (2021), "RepVGG", as it is trained: 3x3, 1x1, identity, with BatchNorm each."""
    return _repvgg(classes, deploy=False)


def repvgg_deployed(classes: int) -> nn.Module:
    """Ding et al. (2021), "RepVGG", as it is deployed: 3x3 convolutions with bias and ReLU."""
    return _repvgg(classes, deploy=True)


class _MobileOne(nn.Module):
    def __init__(
        self, inside: int, outside: int, kernel: int, stride: int, *, groups: int, deploy: bool
    ) -> None:
        super().__init__()
        self.deploy = deploy
        self.activation = nn.ReLU()
        if deploy:
            self.reparam_conv = nn.Conv2d(
                inside, outside, kernel, stride, kernel // 2, groups=groups
            )
            return
        same = inside == outside and stride == 1
        self.rbr_skip = nn.BatchNorm2d(inside) if same else None
        self.rbr_conv = nn.ModuleList(
            conv_bn(inside, outside, kernel, stride, groups=groups, activation=None)
            for _ in range(2)
        )
        self.rbr_scale = (
            conv_bn(inside, outside, 1, stride, groups=groups, activation=None)
            if kernel > 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            return self.activation(self.reparam_conv(x))
        out = 0 if self.rbr_skip is None else self.rbr_skip(x)
        if self.rbr_scale is not None:
            out = out + self.rbr_scale(x)
        for branch in self.rbr_conv:
            out = out + branch(x)
        return self.activation(out)


def _mobileone(classes: int, *, deploy: bool) -> nn.Module:
    blocks: list[nn.Module] = [_MobileOne(3, 32, 3, 2, groups=1, deploy=deploy)]
    for inside, outside, stride in ((32, 48, 2), (48, 48, 1), (48, 96, 2)):
        blocks.append(_MobileOne(inside, inside, 3, stride, groups=inside, deploy=deploy))
        blocks.append(_MobileOne(inside, outside, 1, 1, groups=1, deploy=deploy))
    return nn.Sequential(*blocks, pooled_head(96, classes))


def mobileone(classes: int) -> nn.Module:
    """Vasu et al. (2023), "MobileOne", as it is trained: several branches of each kind."""
    return _mobileone(classes, deploy=False)


def mobileone_deployed(classes: int) -> nn.Module:
    """Vasu et al. (2023), "MobileOne", as it is deployed: depthwise and pointwise layers."""
    return _mobileone(classes, deploy=True)


class _Asymmetric(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.square = conv_bn(inside, outside, 3, activation=None)
        self.vertical = conv_bn(inside, outside, (3, 1), activation=None)
        self.horizontal = conv_bn(inside, outside, (1, 3), activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.square(x) + self.vertical(x) + self.horizontal(x))


def acnet(classes: int) -> nn.Module:
    """Ding et al. (2019), "ACNet": kernels of 3x3, 3x1 and 1x3 side by side."""
    return nn.Sequential(
        _Asymmetric(3, 32),
        nn.MaxPool2d(2),
        _Asymmetric(32, 48),
        nn.MaxPool2d(2),
        pooled_head(48, classes),
    )
