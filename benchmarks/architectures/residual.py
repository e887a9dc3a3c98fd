"""Networks with shortcuts: ResNet and its descendants, RegNet, NF-ResNet."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.blocks import Residual, SqueezeExcite, conv_bn, pooled_head


def _projection(inside: int, outside: int, stride: int) -> nn.Module | None:
    if stride == 1 and inside == outside:
        return None
    return conv_bn(inside, outside, 1, stride, activation=None)


def _basic(inside: int, outside: int, stride: int = 1) -> nn.Module:
    branch = nn.Sequential(
        conv_bn(inside, outside, 3, stride), conv_bn(outside, outside, activation=None)
    )
    return Residual(branch, _projection(inside, outside, stride))


def _bottleneck(
    inside: int, inner: int, outside: int, stride: int = 1, *, groups: int = 1
) -> nn.Module:
    branch = nn.Sequential(
        conv_bn(inside, inner, 1),
        conv_bn(inner, inner, 3, stride, groups=groups),
        conv_bn(inner, outside, 1, activation=None),
    )
    return Residual(branch, _projection(inside, outside, stride))


def resnet(classes: int) -> nn.Module:
    """He et al. (2016), "Deep residual learning": basic blocks, the stem for small images."""
    return nn.Sequential(
        conv_bn(3, 16),
        _basic(16, 16),
        _basic(16, 32, 2),
        _basic(32, 64, 2),
        pooled_head(64, classes),
    )


def resnet_bottleneck(classes: int) -> nn.Module:
    """He et al. (2016): bottlenecks, and the 7x7 stem with max pooling for large images."""
    return nn.Sequential(
        conv_bn(3, 16, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        _bottleneck(16, 16, 64),
        _bottleneck(64, 24, 96, 2),
        _bottleneck(96, 32, 128, 2),
        _bottleneck(128, 48, 192, 2),
        pooled_head(192, classes),
    )


def resnext(classes: int) -> nn.Module:
    """Xie et al. (2017), "Aggregated residual transformations": grouped bottlenecks."""
    return nn.Sequential(
        conv_bn(3, 32),
        _bottleneck(32, 32, 64, groups=8),
        _bottleneck(64, 64, 128, 2, groups=8),
        _bottleneck(128, 64, 128, 2, groups=8),
        pooled_head(128, classes),
    )


class _PreActivated(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.dropout = dropout
        if stride != 1 or inside != outside:
            self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = functional.dropout(out, p=self.dropout, training=self.training)
        return self.conv2(functional.relu(self.bn2(out))) + shortcut


def preact_resnet(classes: int) -> nn.Module:
    """He et al. (2016), "Identity mappings": BatchNorm and ReLU before each convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        _PreActivated(16, 16, 1),
        _PreActivated(16, 32, 2),
        _PreActivated(32, 64, 2),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        pooled_head(64, classes),
    )


def wide_resnet(classes: int) -> nn.Module:
    """Zagoruyko and Komodakis (2016), "Wide residual networks": wide, with dropout inside."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        _PreActivated(16, 48, 1, 0.3),
        _PreActivated(48, 96, 2, 0.3),
        _PreActivated(96, 96, 2, 0.3),
        nn.BatchNorm2d(96),
        nn.ReLU(inplace=True),
        pooled_head(96, classes),
    )


def se_resnet(classes: int) -> nn.Module:
    """Hu et al. (2018), "Squeeze-and-excitation networks"."""

    def block(inside: int, outside: int, stride: int) -> nn.Module:
        branch = nn.Sequential(
            conv_bn(inside, outside, 3, stride),
            conv_bn(outside, outside, activation=None),
            SqueezeExcite(outside, outside // 8),
        )
        return Residual(branch, _projection(inside, outside, stride))

    return nn.Sequential(
        conv_bn(3, 16),
        block(16, 32, 1),
        block(32, 48, 2),
        block(48, 64, 2),
        pooled_head(64, classes),
    )


class _Res2Scales(nn.Module):
    def __init__(self, width: int, scales: int) -> None:
        super().__init__()
        self.part = width // scales
        self.convs = nn.ModuleList(conv_bn(self.part, self.part) for _ in range(scales - 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.part, 1)
        outputs, carried = [parts[0]], parts[0]
        for index, conv in enumerate(self.convs):
            part = parts[index + 1]
            carried = conv(part if index == 0 else part + carried)
            outputs.append(carried)
        return torch.cat(outputs, 1)


def res2net(classes: int) -> nn.Module:
    """Gao et al. (2021), "Res2Net": a hierarchy of small convolutions within one block."""

    def block(inside: int, inner: int, outside: int) -> nn.Module:
        branch = nn.Sequential(
            conv_bn(inside, inner, 1),
            _Res2Scales(inner, 4),
            conv_bn(inner, outside, 1, activation=None),
        )
        return Residual(branch, _projection(inside, outside, 1))

    return nn.Sequential(
        conv_bn(3, 32),
        block(32, 64, 64),
        nn.MaxPool2d(2),
        block(64, 96, 96),
        nn.MaxPool2d(2),
        block(96, 96, 96),
        pooled_head(96, classes),
    )


def resnet_d(classes: int) -> nn.Module:
    """He et al. (2019), "Bag of tricks": a deep stem, and mean pooling in the shortcut."""

    def block(inside: int, outside: int, stride: int) -> nn.Module:
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        shortcut = nn.Sequential(pool, conv_bn(inside, outside, 1, activation=None))
        branch = nn.Sequential(
            conv_bn(inside, outside, 3, stride), conv_bn(outside, outside, activation=None)
        )
        return Residual(branch, shortcut)

    return nn.Sequential(
        conv_bn(3, 16, 3, 2),
        conv_bn(16, 16),
        conv_bn(16, 32),
        nn.MaxPool2d(3, 2, 1),
        block(32, 48, 2),
        block(48, 64, 2),
        pooled_head(64, classes),
    )


class _Blur(nn.Module):
    kernel: Tensor

    def __init__(self, width: int, stride: int = 2) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        square = torch.outer(row, row) / 16
        self.register_buffer("kernel", square.expand(width, 1, 3, 3).clone())
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, self.kernel, stride=self.stride, groups=x.shape[1])


def blurpool_resnet(classes: int) -> nn.Module:
    """Zhang (2019), "Making convolutional networks shift-invariant again": blurred subsampling."""

    def block(inside: int, outside: int) -> nn.Module:
        branch = nn.Sequential(
            conv_bn(inside, outside), _Blur(outside), conv_bn(outside, outside, activation=None)
        )
        return Residual(
            branch, nn.Sequential(_Blur(inside), conv_bn(inside, outside, 1, activation=None))
        )

    return nn.Sequential(
        conv_bn(3, 24),
        nn.MaxPool2d(2, 1),
        _Blur(24),
        block(24, 48),
        block(48, 64),
        pooled_head(64, classes),
    )


class _OptionA(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.more = outside - inside

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))


def resnet_option_a(classes: int) -> nn.Module:
    """He et al. (2016), option A: shortcuts that skip pixels and pad channels with zeros."""

    def block(inside: int, outside: int) -> nn.Module:
        branch = nn.Sequential(
            conv_bn(inside, outside, 3, 2), conv_bn(outside, outside, activation=None)
        )
        return Residual(branch, _OptionA(inside, outside))

    return nn.Sequential(
        conv_bn(3, 16), _basic(16, 16), block(16, 32), block(32, 64), pooled_head(64, classes)
    )


def regnet(classes: int) -> nn.Module:
    """Radosavovic et al. (2020), "Designing network design spaces": RegNetY's grouped blocks."""

    def block(inside: int, outside: int, stride: int) -> nn.Module:
        branch = nn.Sequential(
            conv_bn(inside, outside, 1),
            conv_bn(outside, outside, 3, stride, groups=outside // 8),
            SqueezeExcite(outside, inside // 4),
            conv_bn(outside, outside, 1, activation=None),
        )
        return Residual(branch, _projection(inside, outside, stride))

    return nn.Sequential(
        conv_bn(3, 32, 3, 2),
        block(32, 48, 1),
        block(48, 64, 2),
        block(64, 64, 1),
        block(64, 104, 2),
        pooled_head(104, classes),
    )


class _ScaledConv(nn.Conv2d):
    def __init__(self, inside: int, outside: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inside, outside, kernel, stride, kernel // 2)
        self.gain = nn.Parameter(torch.ones(outside, 1, 1, 1))
        self.fan_in = inside * kernel * kernel

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        scale = torch.rsqrt(torch.clamp(variance * self.fan_in, min=1e-4)) * self.gain
        weight = (self.weight - mean) * scale
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class _NormFree(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta
        self.conv1 = _ScaledConv(inside, outside, 3, stride)
        self.conv2 = _ScaledConv(outside, outside, 3)
        self.down = _ScaledConv(inside, outside, 1, stride)
        self.skip_gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.gelu(x) * 1.7015 * self.beta
        shortcut = self.down(out)
        out = self.conv2(functional.gelu(self.conv1(out)) * 1.7015)
        return out * self.skip_gain * self.alpha + shortcut


def nf_resnet(classes: int) -> nn.Module:
    """Brock et al. (2021), "High-performance image recognition without normalization"."""
    return nn.Sequential(
        _ScaledConv(3, 24, 3),
        _NormFree(24, 32, 2, 0.2, 1.0),
        _NormFree(32, 48, 2, 0.2, 0.98),
        nn.GELU(),
        pooled_head(48, classes, dropout=0.1),
    )


class _DropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


def stochastic_depth_resnet(classes: int) -> nn.Module:
    """Huang et al. (2016), "Deep networks with stochastic depth": branches dropped in training."""

    def block(inside: int, outside: int, stride: int, rate: float) -> nn.Module:
        branch = nn.Sequential(
            conv_bn(inside, outside, 3, stride),
            conv_bn(outside, outside, activation=None),
            _DropPath(rate),
        )
        return Residual(branch, _projection(inside, outside, stride))

    return nn.Sequential(
        conv_bn(3, 16),
        block(16, 32, 1, 0.05),
        block(32, 48, 2, 0.1),
        block(48, 64, 2, 0.2),
        pooled_head(64, classes),
    )


class _SplitAttention(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv = conv_bn(inside, 2 * outside, 3, stride, groups=2)
        self.fc1, self.fc2 = nn.Conv2d(outside, 16, 1), nn.Conv2d(16, 2 * outside, 1)
        self.bn = nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, width = x.shape[:2]
        splits = torch.split(x, width // 2, dim=1)
        gap = functional.adaptive_avg_pool2d(sum(splits), 1)
        weights = self.fc2(functional.relu(self.bn(self.fc1(gap))))
        weights = functional.softmax(weights.view(batch, 1, 2, -1).transpose(1, 2), dim=1)
        weights = weights.reshape(batch, -1).view(batch, -1, 1, 1)
        parts = torch.split(weights, width // 2, dim=1)
        return sum(part * split for part, split in zip(parts, splits, strict=True)).contiguous()


def resnest(classes: int) -> nn.Module:
    """Zhang et al. (2022), "ResNeSt": attention over splits, a softmax across their weights."""
    return nn.Sequential(
        conv_bn(3, 24),
        Residual(_SplitAttention(24, 48, 2), _projection(24, 48, 2)),
        Residual(_SplitAttention(48, 64, 2), _projection(48, 64, 2)),
        pooled_head(64, classes),
    )
