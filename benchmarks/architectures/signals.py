"""Signals, spectra, grey and narrow images: shapes that are no square of three channels."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.blocks import Residual, conv_bn, pooled_head

Shape = tuple[int, int, int]


def signal_2d(classes: int) -> nn.Module:
    """Vibration or ECG as images one pixel high: convolutions of 1x7."""
    return nn.Sequential(
        conv_bn(3, 32, (1, 7), (1, 2)),
        conv_bn(32, 48, (1, 7), (1, 2)),
        conv_bn(48, 64, (1, 5), (1, 2)),
        pooled_head(64, classes),
    )


class _Conv1dNet(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(channels, 32, 7, 2, 3),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(32, 64, 5, padding=2),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
        )
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x.squeeze(2)).squeeze(-1))


def signal_conv1d(classes: int, input_shape: Shape) -> nn.Module:
    """Wang et al. (2017), "Time series classification from scratch": Conv1d behind a squeeze."""
    return _Conv1dNet(classes, input_shape[0])


class _MixedDimensions(nn.Module):
    def __init__(self, classes: int, input_shape: Shape) -> None:
        super().__init__()
        channels, height, _ = input_shape
        self.spectral = nn.Sequential(conv_bn(channels, 32, 3, 2), conv_bn(32, 32, 3, 2))
        self.temporal = nn.Sequential(
            nn.Conv1d(32 * ((height + 3) // 4), 64, 3, padding=2, dilation=2), nn.ReLU()
        )
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spectral(x)
        x = self.temporal(x.flatten(1, 2))
        return self.fc(x.amax(dim=-1))


def spectrogram(classes: int, input_shape: Shape) -> nn.Module:
    """Two-dimensional layers over a spectrogram, then one-dimensional ones over time."""
    return _MixedDimensions(classes, input_shape)


def tc_resnet(classes: int, input_shape: Shape) -> nn.Module:
    """Choi et al. (2019), "Temporal convolution for keyword spotting": frequencies as channels."""

    class _FrequenciesAsChannels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 1, 3)

    branch = nn.Sequential(
        conv_bn(32, 48, (1, 9), (1, 2)), conv_bn(48, 48, (1, 9), activation=None)
    )
    return nn.Sequential(
        _FrequenciesAsChannels(),
        conv_bn(input_shape[1], 32, (1, 3)),
        Residual(branch, conv_bn(32, 48, 1, (1, 2), activation=None)),
        pooled_head(48, classes, dropout=0.1),
    )


def grey_resnet(classes: int, input_shape: Shape) -> nn.Module:
    """A small ResNet for images of one channel."""
    branch = nn.Sequential(conv_bn(24, 48, 3, 2), conv_bn(48, 48, activation=None))
    return nn.Sequential(
        conv_bn(input_shape[0], 24),
        Residual(branch, conv_bn(24, 48, 1, 2, activation=None)),
        nn.MaxPool2d(2),
        conv_bn(48, 64),
        pooled_head(64, classes),
    )


class _RowReader(nn.Module):
    def __init__(self, classes: int, input_shape: Shape) -> None:
        super().__init__()
        channels, height, _ = input_shape
        self.features = nn.Sequential(
            conv_bn(channels, 32), nn.MaxPool2d((2, 1)), conv_bn(32, 48), nn.MaxPool2d((2, 2))
        )
        self.collapse = nn.Conv2d(48, 64, (height // 4, 1))
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.collapse(self.features(x)))
        return self.fc(torch.mean(x.squeeze(2), dim=2))


def non_square(classes: int, input_shape: Shape) -> nn.Module:
    """Shi et al. (2017), the convolutional part of "CRNN": rows collapsed by a tall kernel."""
    return _RowReader(classes, input_shape)


class _Recurrent(nn.Module):
    def __init__(self, classes: int, input_shape: Shape) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(input_shape[0], 32, 3, 2), conv_bn(32, 32, 3, 2))
        self.rnn = nn.GRU(32 * ((input_shape[1] + 3) // 4), 32, batch_first=True)
        self.fc = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1, 2).transpose(1, 2)
        return self.fc(self.rnn(x)[0][:, -1])


def crnn(classes: int, input_shape: Shape) -> nn.Module:
    """Choi et al. (2017), "Convolutional recurrent networks": a GRU over the columns."""
    return _Recurrent(classes, input_shape)


def multispectral(classes: int, input_shape: Shape) -> nn.Module:
    """Aerial images of many bands: a 1x1 layer over the bands comes first."""
    return nn.Sequential(
        conv_bn(input_shape[0], 32, 1),
        conv_bn(32, 48, 3, 2),
        conv_bn(48, 64, 3, 2),
        pooled_head(64, classes),
    )
