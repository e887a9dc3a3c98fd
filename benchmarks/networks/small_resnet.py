"""Build ResNet-8, the CIFAR ResNet with one block a stage, for studies of minutes on two cores."""

from __future__ import annotations

from torch import nn

from edgeclean.load.architectures.residual import cifar_resnet
from edgeclean.networks.state import ModelSpec


def resnet8(classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Return a ResNet-8: 12.5 million multiply-accumulates for a 32x32 image."""
    spec = ModelSpec(
        architecture="resnet8", input_shape=input_shape, classes=classes, mean=(0.0,), std=(1.0,)
    )
    return cifar_resnet(8)(spec, ())
