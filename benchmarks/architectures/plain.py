"""Chains without shortcuts: LeNet, AlexNet, VGG, all-convolutional, and the tutorials' networks."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

Shape = tuple[int, int, int]


class _TutorialLeNet(nn.Module):
    def __init__(self, classes: int, input_shape: Shape) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 16, 5)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.features = 32 * ((height - 4) // 2 - 4) * ((width - 4) // 2 - 4) // 4
        self.fc1 = nn.Linear(self.features, 64)
        self.fc2 = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        x = x.view(-1, self.features)
        x = functional.relu(self.fc1(x))
        return self.fc2(functional.dropout(x, training=self.training))


def lenet(classes: int, input_shape: Shape) -> nn.Module:
    """LeCun et al. (1998), "Gradient-based learning", as tutorials write it: one pool, a view."""
    return _TutorialLeNet(classes, input_shape)


class _ClassicLeNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.c1, self.c3 = nn.Conv2d(1, 8, 5, padding=2), nn.Conv2d(8, 24, 5)
        self.c5 = nn.Conv2d(24, 64, 6)
        self.f6, self.out = nn.Linear(64, 48), nn.Linear(48, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(torch.tanh(self.c1(x)), 2)
        x = functional.avg_pool2d(torch.tanh(self.c3(x)), 2)
        x = torch.tanh(self.c5(x)).view(x.size(0), -1)
        return self.out(torch.tanh(self.f6(x)))


def lenet_tanh(classes: int) -> nn.Module:
    """LeCun et al. (1998) as printed: tanh, mean pooling, C5 as a convolution of the whole map."""
    return _ClassicLeNet(classes)


class _AlexNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.LocalResponseNorm(5),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(32, 64, 5, padding=2, groups=2),
            nn.ReLU(inplace=True),
            nn.LocalResponseNorm(5),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(64 * 9, 128), nn.ReLU(inplace=True), nn.Linear(128, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(x.size(0), 64 * 3 * 3)
        return self.classifier(x)


def alexnet(classes: int) -> nn.Module:
    """Krizhevsky et al. (2012), "ImageNet classification with deep CNNs": LRN, groups, a view."""
    return _AlexNet(classes)


def _vgg_features(widths: tuple[int | str, ...], *, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    inside = 3
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers.append(nn.Conv2d(inside, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width)] if norm else []
        layers.append(nn.ReLU(inplace=True))
        inside = width
    return nn.Sequential(*layers)


class _Vgg(nn.Module):
    def __init__(self, features: nn.Module, side: int, width: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(side)
        self.classifier = nn.Sequential(
            nn.Linear(width * side * side, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def vgg(classes: int) -> nn.Module:
    """Simonyan and Zisserman (2015), "Very deep convolutional networks"; pooled up to 7x7."""
    return _Vgg(_vgg_features((24, "M", 32, "M", 48, 48, "M"), norm=False), 7, 48, classes)


def vgg_bn(classes: int) -> nn.Module:
    """VGG with BatchNorm behind every convolution, which keeps its bias."""
    return _Vgg(_vgg_features((24, "M", 48, "M", 64, 64, "M"), norm=True), 1, 64, classes)


class _View(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size()[0], -1)


def vgg_view(classes: int) -> nn.Module:
    """A VGG for CIFAR as tutorials write it: mean pooling by one pixel, then a view."""
    features = _vgg_features((24, "M", 48, "M", 64, 64, "M", 64, "M", 64, "M"), norm=True)
    return nn.Sequential(features, nn.AvgPool2d(1, 1), _View(), nn.Linear(64, classes))


def all_convolutional(classes: int) -> nn.Module:
    """Springenberg et al. (2015), "Striving for simplicity"; its logits keep [n, c, 1, 1]."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 1),
        nn.ReLU(),
        nn.Conv2d(64, classes, 1),
        nn.AdaptiveAvgPool2d(1),
    )


def network_in_network(classes: int) -> nn.Module:
    """Lin et al. (2014), "Network in network": 1x1 layers, rounded-up pooling, no linear layer."""

    def mlpconv(inside: int, outside: int, kernel: int) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Conv2d(inside, outside, kernel, padding=kernel // 2)]
        layers += [nn.ReLU(inplace=True), nn.Conv2d(outside, outside, 1), nn.ReLU(inplace=True)]
        return layers

    return nn.Sequential(
        *mlpconv(3, 48, 5),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Dropout(0.1),
        *mlpconv(48, 64, 5),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        *mlpconv(64, 64, 3),
        nn.Conv2d(64, classes, 1),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


def maxout(classes: int) -> nn.Module:
    """Goodfellow et al. (2013), "Maxout networks": the largest of pieces, by view and max."""

    class _Maxout(nn.Module):
        def __init__(self, inside: int, outside: int, kernel: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inside, 2 * outside, kernel, padding=kernel // 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x.reshape(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:]).max(dim=2)[0]

    return nn.Sequential(
        _Maxout(3, 24, 5),
        nn.MaxPool2d(3, 2, 1),
        _Maxout(24, 48, 3),
        nn.MaxPool2d(3, 2, 1),
        _Maxout(48, 48, 3),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(48, classes),
    )


class _LightCnn(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 64, 5, 1, 2)
        self.two = nn.Conv2d(32, 96, 3, 1, 1)
        self.fc = nn.Linear(48 * 8 * 8, classes)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.two):
            first, second = torch.chunk(layer(x), 2, dim=1)
            x = functional.max_pool2d(torch.max(first, second), 2, 2, ceil_mode=True)
        return self.fc(x.flatten(start_dim=1))


def light_cnn(classes: int) -> nn.Module:
    """Wu et al. (2018), "A light CNN": the larger of two halves of the channels."""
    return _LightCnn(classes)
