"""Depthwise networks for small devices: MobileNet, MNASNet, MCUNet, EfficientNet, MixNet."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.blocks import Activation, SqueezeExcite, conv_bn, pooled_head


def _separable(inside: int, outside: int, stride: int, activation: Activation) -> nn.Sequential:
    return nn.Sequential(
        conv_bn(inside, inside, 3, stride, groups=inside, activation=activation),
        conv_bn(inside, outside, 1, activation=activation),
    )


def mobilenet_v1(classes: int) -> nn.Module:
    """Howard et al. (2017), "MobileNets": depthwise and pointwise layers with ReLU6."""
    return nn.Sequential(
        conv_bn(3, 24, 3, 2, activation=nn.ReLU6),
        _separable(24, 48, 1, nn.ReLU6),
        _separable(48, 96, 2, nn.ReLU6),
        _separable(96, 128, 2, nn.ReLU6),
        pooled_head(128, classes),
    )


class _Inverted(nn.Module):
    def __init__(
        self,
        widths: tuple[int, int, int],
        kernel: int = 3,
        stride: int = 1,
        activation: Activation = nn.ReLU6,
        excite: nn.Module | None = None,
    ) -> None:
        super().__init__()
        inside, inner, outside = widths
        layers: list[nn.Module] = []
        if inner != inside:
            layers.append(conv_bn(inside, inner, 1, activation=activation))
        layers.append(conv_bn(inner, inner, kernel, stride, groups=inner, activation=activation))
        if excite is not None:
            layers.append(excite)
        layers.append(conv_bn(inner, outside, 1, activation=None))
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


def mobilenet_v2(classes: int) -> nn.Module:
    """Sandler et al. (2018), "MobileNetV2": inverted residuals, linear at their ends."""
    return nn.Sequential(
        conv_bn(3, 16, 3, 2, activation=nn.ReLU6),
        _Inverted((16, 16, 16)),
        _Inverted((16, 96, 24), stride=2),
        _Inverted((24, 144, 24)),
        _Inverted((24, 144, 32), stride=2),
        conv_bn(32, 128, 1, activation=nn.ReLU6),
        pooled_head(128, classes, dropout=0.2),
    )


class _MobileNetV3(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()

        def excite(width: int) -> nn.Module:
            return SqueezeExcite(width, width // 4, nn.ReLU, nn.Hardsigmoid)

        self.features = nn.Sequential(
            conv_bn(3, 16, 3, 2, activation=nn.Hardswish),
            _Inverted((16, 16, 16), 3, 2, nn.ReLU, excite(16)),
            _Inverted((16, 72, 24), 3, 1, nn.ReLU),
            _Inverted((24, 96, 40), 5, 2, nn.Hardswish, excite(96)),
            _Inverted((40, 120, 40), 5, 1, nn.Hardswish, excite(120)),
            conv_bn(40, 160, 1, activation=nn.Hardswish),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(160, 128),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=0.2, inplace=True),
            nn.Linear(128, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def mobilenet_v3(classes: int) -> nn.Module:
    """Howard et al. (2019), "Searching for MobileNetV3": hard swish, hard sigmoid, 5x5 kernels."""
    return _MobileNetV3(classes)


class _MobileNetV4(nn.Module):
    def __init__(self, inside: int, inner: int, outside: int, stride: int) -> None:
        super().__init__()
        self.start = conv_bn(inside, inside, 3, groups=inside, activation=None)
        self.expand = conv_bn(inside, inner, 1)
        self.middle = conv_bn(inner, inner, 5, stride, groups=inner)
        self.project = conv_bn(inner, outside, 1, activation=None)
        self.scale = nn.Parameter(torch.full((outside,), 0.5))
        self.same = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.middle(self.expand(self.start(x)))) * self.scale.view(1, -1, 1, 1)
        return x + y if self.same else y


def mobilenet_v4(classes: int) -> nn.Module:
    """Qin et al. (2024), "MobileNetV4": universal inverted bottlenecks with a scale per channel."""
    return nn.Sequential(
        conv_bn(3, 24, 3, 2),
        conv_bn(24, 32, 3, 2),
        _MobileNetV4(32, 96, 48, 2),
        _MobileNetV4(48, 144, 48, 1),
        nn.AdaptiveAvgPool2d(1),
        conv_bn(48, 128, 1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def mnasnet(classes: int) -> nn.Module:
    """Tan et al. (2019), "MnasNet": kernels of 3 and 5, and a separable first block."""
    return nn.Sequential(
        conv_bn(3, 16, 3, 2),
        conv_bn(16, 16, 3, groups=16),
        conv_bn(16, 16, 1, activation=None),
        _Inverted((16, 48, 24), 3, 2, nn.ReLU),
        _Inverted((24, 72, 40), 5, 2, nn.ReLU, SqueezeExcite(72, 8)),
        _Inverted((40, 240, 40), 3, 1, nn.ReLU),
        conv_bn(40, 160, 1),
        pooled_head(160, classes, dropout=0.2),
    )


def mcunet(classes: int) -> nn.Module:
    """Lin et al. (2020), "MCUNet": a searched chain of inverted blocks with kernels of 3 to 7."""
    return nn.Sequential(
        conv_bn(3, 16, 3, 2, activation=nn.ReLU6),
        _Inverted((16, 16, 8), 3),
        _Inverted((8, 24, 16), 7, 2),
        _Inverted((16, 80, 16), 3),
        _Inverted((16, 80, 24), 7, 2),
        _Inverted((24, 120, 24), 5),
        _Inverted((24, 144, 40), 7, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(1),
        nn.Linear(40, classes),
    )


class _DsCnn(nn.Module):
    def __init__(self, classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.first = conv_bn(input_shape[0], 64, (11, 5), (2, 2))
        self.blocks = nn.ModuleList(_separable(64, 64, 1, nn.ReLU) for _ in range(3))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        x = functional.avg_pool2d(x, x.size()[2:])
        return self.fc(x.squeeze(-1).squeeze(-1))


def ds_cnn(classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Zhang et al. (2017), "Hello edge": keywords from 49 frames of ten MFCCs."""
    return _DsCnn(classes, input_shape)


def efficientnet(classes: int) -> nn.Module:
    """Tan and Le (2019), "EfficientNet": swish, squeeze and excitation, padding on both sides."""

    def excite(inside: int, inner: int) -> nn.Module:
        return SqueezeExcite(inner, max(1, inside // 4), nn.SiLU)

    return nn.Sequential(
        conv_bn(3, 24, 3, 2, activation=nn.SiLU),
        _Inverted((24, 24, 16), 3, 1, nn.SiLU, excite(24, 24)),
        _Inverted((16, 96, 24), 3, 2, nn.SiLU, excite(16, 96)),
        _Inverted((24, 144, 24), 5, 1, nn.SiLU, excite(24, 144)),
        _Inverted((24, 144, 40), 5, 2, nn.SiLU, excite(24, 144)),
        conv_bn(40, 160, 1, activation=nn.SiLU),
        pooled_head(160, classes, dropout=0.2),
    )


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same" does, by what its input's size asks for."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the map: as many pixels as the stride leaves, the odd one padded at the end."""
        around = [0, 0, 0, 0]
        for axis in (0, 1):
            size, kernel = images.shape[-2 + axis], self.kernel_size[axis]
            stride, dilation = self.stride[axis], self.dilation[axis]
            total = (math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size
            total = max(total, 0)
            around[2 - 2 * axis], around[3 - 2 * axis] = total // 2, total - total // 2
        if any(around):
            images = functional.pad(images, around)
        return functional.conv2d(
            images, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class _LiteBlock(nn.Module):
    def __init__(self, inside: int, inner: int, outside: int, kernel: int, stride: int) -> None:
        super().__init__()
        self._expand_conv = SameConv2d(inside, inner, 1, bias=False)
        self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = SameConv2d(inner, outside, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outside, eps=1e-3)
        self._swish = nn.ReLU6(inplace=True)
        self._skip = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self._swish(self._bn0(self._expand_conv(x)))
        y = self._swish(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._skip else y


def efficientnet_lite(classes: int) -> nn.Module:
    """Tan and Le (2019), the Lite form: ReLU6, no excitation, TensorFlow's "same" padding."""
    return nn.Sequential(
        SameConv2d(3, 24, 3, 2, bias=False),
        nn.BatchNorm2d(24, eps=1e-3),
        nn.ReLU6(),
        _LiteBlock(24, 96, 32, 3, 2),
        _LiteBlock(32, 128, 32, 5, 1),
        _LiteBlock(32, 128, 48, 5, 2),
        SameConv2d(48, 160, 1, bias=False),
        nn.BatchNorm2d(160, eps=1e-3),
        nn.ReLU6(),
        pooled_head(160, classes),
    )


class _Fused(nn.Module):
    def __init__(self, inside: int, inner: int, outside: int, stride: int) -> None:
        super().__init__()
        self.expand = conv_bn(inside, inner, 3, stride, activation=nn.SiLU)
        self.project = conv_bn(inner, outside, 1, activation=None)
        self.skip = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.expand(x))
        return y.add_(x) if self.skip else y


def efficientnet_v2(classes: int) -> nn.Module:
    """Tan and Le (2021), "EfficientNetV2": fused blocks in the early stages; sums in place."""
    return nn.Sequential(
        conv_bn(3, 16, 3, 2, activation=nn.SiLU),
        _Fused(16, 64, 32, 1),
        _Fused(32, 96, 32, 1),
        _Inverted((32, 128, 48), 3, 2, nn.SiLU, SqueezeExcite(128, 8, nn.SiLU)),
        conv_bn(48, 128, 1, activation=nn.SiLU),
        pooled_head(128, classes, dropout=0.1),
    )


class _MixedKernels(nn.Module):
    def __init__(self, width: int, kernels: tuple[int, ...]) -> None:
        super().__init__()
        each = width // len(kernels)
        self.splits = [each] * (len(kernels) - 1) + [width - each * (len(kernels) - 1)]
        for index, (part, kernel) in enumerate(zip(self.splits, kernels, strict=True)):
            conv = nn.Conv2d(part, part, kernel, padding=kernel // 2, groups=part, bias=False)
            self.add_module(str(index), conv)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.splits, 1)
        return torch.cat([conv(parts[i]) for i, conv in enumerate(self._modules.values())], 1)


def mixnet(classes: int) -> nn.Module:
    """Tan and Le (2019), "MixConv": depthwise kernels of 3, 5 and 7 over parts of the channels."""

    def block(inside: int, outside: int) -> list[nn.Module]:
        expand = conv_bn(inside, 3 * inside, 1)
        mixed = [_MixedKernels(3 * inside, (3, 5, 7)), nn.BatchNorm2d(3 * inside), nn.ReLU()]
        return [expand, *mixed, conv_bn(3 * inside, outside, 1, activation=None)]

    return nn.Sequential(
        conv_bn(3, 24, 3, 2),
        *block(24, 40),
        nn.MaxPool2d(2),
        *block(40, 64),
        pooled_head(64, classes),
    )
