"""Light networks by other means: SqueezeNet, ShuffleNet, GhostNet, FasterNet, ConvMixer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.blocks import Residual, conv_bn, pooled_head


class _Fire(nn.Module):
    def __init__(self, inside: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.squeeze(x))
        one, three = self.activation(self.expand1x1(x)), self.activation(self.expand3x3(x))
        return torch.cat([one, three], 1)


def squeezenet(classes: int) -> nn.Module:
    """Iandola et al. (2016), "SqueezeNet": fire modules, no BatchNorm, a convolution classifies."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        _Fire(32, 16, 32),
        _Fire(64, 16, 48),
        nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
        _Fire(96, 24, 64),
        nn.Dropout(p=0.5),
        nn.Conv2d(128, classes, kernel_size=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(1),
    )


def _shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class _ShuffleUnit(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.first = conv_bn(width, width, 1, groups=groups)
        self.depth = conv_bn(width, width, 3, groups=width, activation=None)
        self.last = conv_bn(width, width, 1, groups=groups, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.depth(_shuffle(self.first(x), self.groups)))
        return functional.relu(x + y)


def shufflenet_v1(classes: int) -> nn.Module:
    """Zhang et al. (2018), "ShuffleNet": grouped 1x1 layers with a shuffle between them."""
    return nn.Sequential(
        conv_bn(3, 48, 3, 2),
        _ShuffleUnit(48, 3),
        conv_bn(48, 96, 3, 2),
        _ShuffleUnit(96, 3),
        pooled_head(96, classes),
    )


class _ShuffleV2(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        half = outside // 2
        self.stride = stride
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                conv_bn(inside, inside, 3, stride, groups=inside, activation=None),
                conv_bn(inside, half, 1),
            )
        self.branch2 = nn.Sequential(
            conv_bn(inside if stride > 1 else half, half, 1),
            conv_bn(half, half, 3, stride, groups=half, activation=None),
            conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return _shuffle(out, 2)


class _ShuffleNetV2(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = conv_bn(3, 24, 3, 2)
        self.stage2 = nn.Sequential(_ShuffleV2(24, 64, 2), _ShuffleV2(64, 64, 1))
        self.stage3 = nn.Sequential(_ShuffleV2(64, 128, 2), _ShuffleV2(128, 128, 1))
        self.conv5 = conv_bn(128, 128, 1)
        self.fc = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv5(self.stage3(self.stage2(self.conv1(x))))
        return self.fc(x.mean([2, 3]))  # globalpool


def shufflenet_v2(classes: int) -> nn.Module:
    """Ma et al. (2018), "ShuffleNet V2": channels split in two, shuffled by view and transpose."""
    return _ShuffleNetV2(classes)


class _Ghost(nn.Module):
    def __init__(self, inside: int, outside: int, *, relu: bool) -> None:
        super().__init__()
        self.oup = outside
        intrinsic = math.ceil(outside / 2)
        activation = nn.ReLU if relu else None
        self.primary_conv = conv_bn(inside, intrinsic, 1, activation=activation)
        self.cheap_operation = conv_bn(
            intrinsic, intrinsic, 3, groups=intrinsic, activation=activation
        )

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        return torch.cat([x1, self.cheap_operation(x1)], dim=1)[:, : self.oup, :, :]


class _GhostBottleneck(nn.Module):
    def __init__(self, inside: int, inner: int, outside: int, stride: int) -> None:
        super().__init__()
        self.ghost1 = _Ghost(inside, inner, relu=True)
        self.down = (
            conv_bn(inner, inner, 3, stride, groups=inner, activation=None) if stride > 1 else None
        )
        self.reduce, self.expand = nn.Conv2d(inner, inner // 4, 1), nn.Conv2d(inner // 4, inner, 1)
        self.ghost2 = _Ghost(inner, outside, relu=False)
        self.shortcut = nn.Sequential()
        if stride > 1 or inside != outside:
            self.shortcut = nn.Sequential(
                conv_bn(inside, inside, 3, stride, groups=inside, activation=None),
                conv_bn(inside, outside, 1, activation=None),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ghost1(x)
        if self.down is not None:
            y = self.down(y)
        weights = self.expand(functional.relu(self.reduce(functional.adaptive_avg_pool2d(y, 1))))
        y = y * (functional.relu6(weights + 3.0) / 6.0)
        return self.ghost2(y) + self.shortcut(x)


def ghostnet(classes: int) -> nn.Module:
    """Han et al. (2020), "GhostNet": half of the maps are cheap copies of the others, sliced."""
    return nn.Sequential(
        conv_bn(3, 16, 3, 2),
        _GhostBottleneck(16, 48, 24, 2),
        _GhostBottleneck(24, 97, 41, 1),
        _GhostBottleneck(41, 120, 48, 2),
        conv_bn(48, 128, 1),
        pooled_head(128, classes),
    )


class _PartialConv(nn.Module):
    def __init__(self, width: int, share: int = 4) -> None:
        super().__init__()
        self.touched = width // share
        self.untouched = width - self.touched
        self.partial_conv3 = nn.Conv2d(self.touched, self.touched, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.split(x, [self.touched, self.untouched], dim=1)
        return torch.cat((self.partial_conv3(x1), x2), 1)


def fasternet(classes: int) -> nn.Module:
    """Chen et al. (2023), "Run, don't walk": convolutions over a quarter of the channels."""

    def block(width: int) -> nn.Module:
        branch = nn.Sequential(
            _PartialConv(width),
            conv_bn(width, 2 * width, 1),
            nn.Conv2d(2 * width, width, 1, bias=False),
        )
        return Residual(branch, after=False)

    return nn.Sequential(
        nn.Conv2d(3, 48, 4, 4, bias=False),
        nn.BatchNorm2d(48),
        block(48),
        nn.Conv2d(48, 96, 2, 2, bias=False),
        nn.BatchNorm2d(96),
        block(96),
        pooled_head(96, classes),
    )


def convmixer(classes: int) -> nn.Module:
    """Trockman and Kolter (2022), "Patches are all you need?": even kernels padded as "same"."""

    def block(width: int) -> nn.Module:
        depth = nn.Sequential(
            nn.Conv2d(width, width, 5, groups=width, padding="same"),
            nn.GELU(),
            nn.BatchNorm2d(width),
        )
        point = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))
        return nn.Sequential(Residual(depth, after=False), point)

    patches = nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.GELU(), nn.BatchNorm2d(64))
    return nn.Sequential(patches, block(64), block(64), pooled_head(64, classes))


class _Fractal(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.short = conv_bn(inside, outside)
        self.long = nn.Sequential(conv_bn(inside, outside), conv_bn(outside, outside))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack((self.short(x), self.long(x))).mean(dim=0)


def fractalnet(classes: int) -> nn.Module:
    """Larsson et al. (2017), "FractalNet": the mean of paths of unequal length, by stack."""
    return nn.Sequential(
        _Fractal(3, 32),
        nn.MaxPool2d(2),
        _Fractal(32, 48),
        nn.MaxPool2d(2),
        pooled_head(48, classes),
    )


class _Octave(nn.Module):
    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.high_high, self.low_low = conv_bn(high, high), conv_bn(low, low)
        self.high_low, self.low_high = conv_bn(high, low), conv_bn(low, high)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        high, low = x
        raised = functional.interpolate(self.low_high(low), scale_factor=2, mode="nearest")
        lowered = self.high_low(functional.avg_pool2d(high, 2))
        return self.high_high(high) + raised, self.low_low(low) + lowered


class _OctaveNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.high, self.low = conv_bn(3, 24, 3, 2), conv_bn(3, 24, 3, 2)
        self.layers = nn.Sequential(_Octave(24, 24), _Octave(24, 24))
        self.fc = nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        high, low = self.layers((self.high(x), self.low(functional.avg_pool2d(x, 2))))
        pooled = [one.mean(dim=(-2, -1)) for one in (high, low)]
        return self.fc(torch.cat(pooled, 1))


def octave_net(classes: int) -> nn.Module:
    """Chen et al. (2019), "Drop an octave": pairs of maps of two sizes, passed as tuples."""
    return _OctaveNet(classes)
