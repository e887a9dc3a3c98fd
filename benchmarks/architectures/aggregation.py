"""Maps of many layers joined: DenseNet, CSPNet, VoVNet, DLA, HRNet, YOLO's classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.blocks import Residual, conv_bn, pooled_head


class _DenseLayer(nn.Module):
    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(functional.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(functional.relu(self.norm2(x)))


class _DenseBlock(nn.ModuleDict):
    def __init__(self, inside: int, growth: int, layers: int) -> None:
        super().__init__()
        for index in range(layers):
            self[f"denselayer{index + 1}"] = _DenseLayer(inside + index * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class _DenseNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            _DenseBlock(32, 24, 3),
            nn.Sequential(
                nn.BatchNorm2d(104),
                nn.ReLU(inplace=True),
                nn.Conv2d(104, 52, 1, bias=False),
                nn.AvgPool2d(2, 2),
            ),
            _DenseBlock(52, 24, 3),
            nn.BatchNorm2d(124),
        )
        self.classifier = nn.Linear(124, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.features(x), inplace=True)
        out = functional.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


def densenet(classes: int) -> nn.Module:
    """Huang et al. (2017), "Densely connected convolutional networks": lists of maps joined."""
    return _DenseNet(classes)


class _CspStage(nn.Module):
    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        half = width // 2
        self.down = conv_bn(half, width, 3, 2, activation=nn.LeakyReLU)
        self.split1 = conv_bn(width, half, 1, activation=nn.LeakyReLU)
        self.split2 = conv_bn(width, half, 1, activation=nn.LeakyReLU)
        self.blocks = nn.Sequential(
            *(
                Residual(
                    nn.Sequential(
                        conv_bn(half, half, 1, activation=nn.Mish),
                        conv_bn(half, half, activation=nn.Mish),
                    ),
                    after=False,
                )
                for _ in range(blocks)
            )
        )
        self.transition = conv_bn(width, width, 1, activation=nn.LeakyReLU)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.transition(torch.cat([self.split1(x), self.blocks(self.split2(x))], dim=1))


def cspnet(classes: int) -> nn.Module:
    """Wang et al. (2020), "CSPNet": half of the channels goes past each stage; Mish inside."""
    return nn.Sequential(
        conv_bn(3, 24, activation=nn.Mish),
        _CspStage(48, 1),
        _CspStage(96, 1),
        pooled_head(96, classes),
    )


class _OneShot(nn.Module):
    def __init__(self, inside: int, inner: int, outside: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            conv_bn(inside if index == 0 else inner, inner) for index in range(layers)
        )
        self.join = conv_bn(inside + layers * inner, outside, 1)
        self.effective = nn.Conv2d(outside, outside, 1)
        self.identity = inside == outside

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        joined = self.join(torch.cat(maps, 1))
        gate = functional.hardsigmoid(self.effective(joined.mean((2, 3), keepdim=True)))
        joined = joined * gate
        return joined + x if self.identity else joined


def vovnet(classes: int) -> nn.Module:
    """Lee et al. (2019), "VoVNet", and Lee and Park (2020), "CenterMask", whose eSE it has."""
    return nn.Sequential(
        conv_bn(3, 32, 3, 2),
        _OneShot(32, 24, 64, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _OneShot(64, 24, 64, 3),
        pooled_head(64, classes),
    )


class _Tree(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.down = nn.MaxPool2d(2, 2)
        self.project = conv_bn(inside, outside, 1, activation=None)
        self.left1 = conv_bn(inside, outside, 3, 2)
        self.left2 = conv_bn(outside, outside, activation=None)
        self.right1 = conv_bn(outside, outside)
        self.right2 = conv_bn(outside, outside, activation=None)
        self.root = nn.Conv2d(2 * outside + inside, outside, 1, bias=False)
        self.root_bn = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        bottom = self.down(x)
        left = functional.relu(self.left2(self.left1(x)) + self.project(bottom))
        right = functional.relu(self.right2(self.right1(left)) + left)
        joined = self.root_bn(self.root(torch.cat((right, left, bottom), 1)))
        return functional.relu(joined + right)


class _Dla(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.base = conv_bn(3, 24, 7)
        self.level1, self.level2 = _Tree(24, 40), _Tree(40, 64)
        self.fc = nn.Conv2d(64, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.level2(self.level1(self.base(x)))
        x = self.fc(functional.adaptive_avg_pool2d(x, 1))
        return x.view(x.size(0), -1)


def dla(classes: int) -> nn.Module:
    """Yu et al. (2018), "Deep layer aggregation": trees with roots; a convolution classifies."""
    return _Dla(classes)


class _HighResolution(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 32, 3, 2), conv_bn(32, 24))
        self.to_low = conv_bn(24, 48, 3, 2)
        self.high, self.low = conv_bn(24, 24), conv_bn(48, 48)
        self.up = conv_bn(48, 24, 1, activation=None)
        self.down = conv_bn(24, 48, 3, 2, activation=None)
        self.head_high = conv_bn(24, 64, 3, 2)
        self.head_low = conv_bn(48, 64, 1)
        self.classifier = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        high = self.stem(x)
        low = self.low(self.to_low(high))
        high = self.high(high)
        raised = functional.interpolate(
            self.up(low), size=high.shape[-2:], mode="bilinear", align_corners=False
        )
        high, low = functional.relu(high + raised), functional.relu(low + self.down(high))
        y = self.head_high(high) + self.head_low(low)
        y = functional.avg_pool2d(y, kernel_size=y.size()[2:]).view(y.size(0), -1)
        return self.classifier(y)


def hrnet(classes: int) -> nn.Module:
    """Wang et al. (2020), "Deep high-resolution representation learning": two scales exchanged."""
    return _HighResolution(classes)


class _C2f(nn.Module):
    def __init__(self, inside: int, outside: int, blocks: int) -> None:
        super().__init__()
        self.c = outside // 2
        self.cv1 = conv_bn(inside, 2 * self.c, 1, activation=nn.SiLU)
        self.cv2 = conv_bn((2 + blocks) * self.c, outside, 1, activation=nn.SiLU)
        self.m = nn.ModuleList(
            Residual(
                nn.Sequential(
                    conv_bn(self.c, self.c, activation=nn.SiLU),
                    conv_bn(self.c, self.c, activation=nn.SiLU),
                ),
                after=False,
            )
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class _YoloClassifier(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            conv_bn(3, 16, 3, 2, activation=nn.SiLU),
            _C2f(16, 32, 1),
            conv_bn(32, 48, 3, 2, activation=nn.SiLU),
            _C2f(48, 64, 1),
        )
        self.conv = conv_bn(64, 96, 1, activation=nn.SiLU)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(p=0.0, inplace=True)
        self.linear = nn.Linear(96, classes)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        if isinstance(x, list):
            x = torch.cat(x, 1)
        x = self.linear(self.drop(self.pool(self.conv(self.model(x))).flatten(1)))
        return x if self.training else (x.softmax(1), x)


def yolo_cls(classes: int) -> nn.Module:
    """After the public description of YOLOv8's classifier: C2f, SiLU; (shares, logits) in eval."""
    return _YoloClassifier(classes)


class _SpatialPyramid(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1 = conv_bn(width, width // 2, 1, activation=nn.SiLU)
        self.cv2 = conv_bn(2 * width, width, 1, activation=nn.SiLU)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


def sppf(classes: int) -> nn.Module:
    """He et al. (2015), "Spatial pyramid pooling", as three pools in a row joined."""
    return nn.Sequential(
        conv_bn(3, 32, 3, 2, activation=nn.SiLU),
        conv_bn(32, 64, 3, 2, activation=nn.SiLU),
        _SpatialPyramid(64),
        pooled_head(64, classes),
    )


class _PyramidPooling(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 32, 3, 2), conv_bn(32, 48, 3, 2))
        self.fc = nn.Linear(48 * (16 + 4 + 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        pooled = [functional.adaptive_max_pool2d(x, side).flatten(1) for side in (4, 2, 1)]
        return self.fc(torch.cat(pooled, dim=-1))


def spp_net(classes: int) -> nn.Module:
    """He et al. (2015), "Spatial pyramid pooling in deep networks": max pools of 4x4, 2x2, 1."""
    return _PyramidPooling(classes)
