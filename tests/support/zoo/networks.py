"""Code of the two zoo networks that no table holds, as their authors' keys and README tell it."""

from __future__ import annotations

from torch import Tensor, nn


class SmallVgg(nn.Module):
    """[conv3x3-BN-ELU] x 2 at 32, 64 and 128 channels, 2x2 max-pool and dropout after each pair."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, dropout in ((32, 0.2), (64, 0.3), (128, 0.4)):
            for _ in range(2):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ELU(),
                ]
                channels = width
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        self.features = nn.Sequential(*layers)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(128 * 4 * 4, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.flatten(self.features(images)))
        return logits


class LeNet(nn.Module):
    """Two 5x5 convolutions with average pooling, two linear layers, no BatchNorm."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.flatten = nn.Flatten()
        self.fc1 = nn.Sequential(nn.Linear(800, 512), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(512, classes))

    def forward(self, images: Tensor) -> Tensor:
        features = self.flatten(self.conv2(self.conv1(images)))
        logits: Tensor = self.fc2(self.fc1(features))
        return logits


def small_vgg(classes: int) -> nn.Module:
    return SmallVgg(classes)


def lenet(classes: int) -> nn.Module:
    return LeNet(classes)
