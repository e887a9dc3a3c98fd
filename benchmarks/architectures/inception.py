"""Parallel branches: GoogLeNet, Inception v3, Inception-ResNet, Xception; heads of training."""

from __future__ import annotations

from collections import namedtuple

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.blocks import Residual, conv_bn, pooled_head

GoogLeNetOutputs = namedtuple("GoogLeNetOutputs", ["logits", "aux"])


class _Branches(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for index, branch in enumerate(branches):
            self.add_module(f"branch{index + 1}", branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


def _inception(inside: int, quarter: int) -> nn.Module:
    return _Branches(
        conv_bn(inside, quarter, 1),
        nn.Sequential(conv_bn(inside, quarter, 1), conv_bn(quarter, quarter)),
        nn.Sequential(conv_bn(inside, quarter // 2, 1), conv_bn(quarter // 2, quarter, 5)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), conv_bn(inside, quarter, 1)),
    )


class _AuxiliaryHead(nn.Module):
    def __init__(self, inside: int, classes: int) -> None:
        super().__init__()
        self.conv = conv_bn(inside, 32, 1)
        self.fc1, self.fc2 = nn.Linear(32 * 4, 48), nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(functional.adaptive_avg_pool2d(x, (2, 2))), 1)
        return self.fc2(functional.dropout(functional.relu(self.fc1(x)), 0.7, self.training))


class _GoogLeNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(3, 24, 7, 2)
        self.lrn = nn.LocalResponseNorm(5)
        self.inception3a, self.inception3b = _inception(24, 12), _inception(48, 16)
        self.aux1 = _AuxiliaryHead(48, classes)
        self.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.dropout, self.fc = nn.Dropout(0.4), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        x = self.inception3a(self.maxpool(self.lrn(self.conv1(x))))
        aux = self.aux1(x) if self.training else None
        x = functional.adaptive_avg_pool2d(self.inception3b(self.maxpool(x)), 1).flatten(1)
        x = self.fc(self.dropout(x))
        return GoogLeNetOutputs(x, aux) if self.training else x


def googlenet(classes: int) -> nn.Module:
    """Szegedy et al. (2015), "Going deeper with convolutions": its auxiliary head never runs."""
    return _GoogLeNet(classes)


class _InceptionV3(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.transform_input = True
        self.stem = nn.Sequential(conv_bn(3, 24, 3, 2), conv_bn(24, 32), nn.MaxPool2d(3, 2))
        self.mixed_a = _Branches(
            conv_bn(32, 16, 1),
            nn.Sequential(conv_bn(32, 16, 1), conv_bn(16, 24), conv_bn(24, 24)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), conv_bn(32, 16, 1)),
        )
        self.mixed_b = _Branches(
            conv_bn(56, 24, 1),
            nn.Sequential(conv_bn(56, 24, 1), conv_bn(24, 24, (1, 7)), conv_bn(24, 24, (7, 1))),
            nn.Sequential(
                conv_bn(56, 24, 1), _Branches(conv_bn(24, 16, (1, 3)), conv_bn(24, 16, (3, 1)))
            ),
        )
        self.aux_logits = nn.Sequential(conv_bn(56, 32, 1), pooled_head(32, classes))
        self.fc = nn.Linear(80, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.transform_input:
            red = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
            green = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
            blue = torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
            x = torch.cat((red, green, blue), 1)
        x = self.mixed_a(self.stem(x))
        auxiliary = self.aux_logits(x) if self.training else None
        x = self.fc(torch.flatten(functional.adaptive_avg_pool2d(self.mixed_b(x), (1, 1)), 1))
        return (x, auxiliary) if self.training else x


def inception_v3(classes: int) -> nn.Module:
    """Szegedy et al. (2016), "Rethinking Inception": 1x7 and 7x1 layers, channels rescaled."""
    return _InceptionV3(classes)


class _ScaledResidual(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.branches = _Branches(
            conv_bn(width, 16, 1), nn.Sequential(conv_bn(width, 16, 1), conv_bn(16, 24))
        )
        self.conv2d = nn.Conv2d(40, width, kernel_size=1, stride=1)
        self.relu = nn.ReLU(inplace=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2d(self.branches(x)) * self.scale + x
        return self.relu(out)


def inception_resnet(classes: int) -> nn.Module:
    """Szegedy et al. (2017), "Inception-v4": branches scaled by 0.17 and added."""
    return nn.Sequential(
        conv_bn(3, 32, 3, 2),
        conv_bn(32, 64),
        nn.MaxPool2d(3, 2),
        _ScaledResidual(64, 0.17),
        _ScaledResidual(64, 0.17),
        pooled_head(64, classes),
    )


class _Separable(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inside, inside, 3, 1, 1, groups=inside, bias=False)
        self.pointwise = nn.Conv2d(inside, outside, 1, bias=False)
        self.bn = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pointwise(self.depthwise(x)))


def xception(classes: int) -> nn.Module:
    """Chollet (2017), "Xception": separable convolutions with a strided shortcut."""

    def block(inside: int, outside: int) -> nn.Module:
        branch = nn.Sequential(
            nn.ReLU(inplace=False),
            _Separable(inside, outside),
            nn.ReLU(inplace=True),
            _Separable(outside, outside),
            nn.MaxPool2d(3, 2, 1),
        )
        return Residual(branch, conv_bn(inside, outside, 1, 2, activation=None), after=False)

    return nn.Sequential(
        conv_bn(3, 32, 3, 2),
        conv_bn(32, 48),
        block(48, 96),
        block(96, 128),
        nn.ReLU(inplace=True),
        pooled_head(128, classes),
    )
