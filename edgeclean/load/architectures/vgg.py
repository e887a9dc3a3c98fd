"""VGG with BatchNorm (Simonyan and Zisserman, 2015), configurations A, B, D and E.

Two families, distinguished by the name, and the CIFAR one's heads by the checkpoint's keys:

- ``vgg16-bn``: torchvision's, with a 7x7 pooling and three linear layers of 4096
  (``classifier.0/.3/.6``);
- ``cifar-vgg16-bn``: one linear layer ``classifier`` (kuangliu's code), or three of 512 named
  ``classifier.1/.4/.6`` (chengyangfu's) or ``classifier.0/.3/.6`` (chenyaofo's).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor, nn

from edgeclean.networks.state import ModelSpec

_POOL = 0
_WIDTHS = {
    11: (64, _POOL, 128, _POOL, 256, 256, _POOL, 512, 512, _POOL, 512, 512, _POOL),
    13: (64, 64, _POOL, 128, 128, _POOL, 256, 256, _POOL, 512, 512, _POOL, 512, 512, _POOL),
    16: (64, 64, _POOL, 128, 128, _POOL, *(256,) * 3, _POOL, *((*(512,) * 3, _POOL) * 2)),
    19: (64, 64, _POOL, 128, 128, _POOL, *(256,) * 4, _POOL, *((*(512,) * 4, _POOL) * 2)),
}


class Vgg(nn.Module):
    """VGG: convolutions in ``features``, a pooling, and linear layers in ``classifier``."""

    def __init__(self, features: nn.Module, pooling: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.avgpool = pooling
        self.flatten = nn.Flatten()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [n, c, h, w] to logits [n, classes]."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(images))))
        return logits


def vgg_bn(depth: int) -> Callable[[ModelSpec, Collection[str]], nn.Module]:
    """Return a builder of VGG as torchvision has it."""

    def build(spec: ModelSpec, keys: Collection[str]) -> nn.Module:
        features = _features(depth, spec.input_shape[0])
        classifier = _three_layers(512 * 7 * 7, 4096, spec.classes, dropout_first=False)
        return Vgg(features, _to_7x7(spec), classifier)

    return build


def cifar_vgg_bn(depth: int) -> Callable[[ModelSpec, Collection[str]], nn.Module]:
    """Return a builder for small images: five poolings, then a head on the plane that is left."""

    def build(spec: ModelSpec, keys: Collection[str]) -> nn.Module:
        features = _features(depth, spec.input_shape[0])
        channels = 512 * (spec.input_shape[1] // 32) * (spec.input_shape[2] // 32)
        if "classifier.6.weight" not in keys:
            return Vgg(features, nn.Identity(), nn.Linear(channels, spec.classes))
        first = "classifier.1.weight" in keys
        return Vgg(
            features, nn.Identity(), _three_layers(channels, 512, spec.classes, dropout_first=first)
        )

    return build


def _features(depth: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in _WIDTHS[depth]:
        if width == _POOL:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


def _to_7x7(spec: ModelSpec) -> nn.Module:
    """Pool to 7x7 by an adaptive mean, in a form that ONNX has an operator for.

    Images smaller than 224 leave a plane smaller than 7x7, which the pooling *enlarges*; where the
    sides divide 7 (32x32 images leave 1x1) that is repeating each pixel, exactly.
    """
    sides = (spec.input_shape[1] // 32, spec.input_shape[2] // 32)
    if sides == (1, 1):
        return nn.Upsample(scale_factor=7)
    return nn.AdaptiveAvgPool2d(7)


def _three_layers(channels: int, width: int, classes: int, *, dropout_first: bool) -> nn.Module:
    first = [nn.Linear(channels, width), nn.ReLU()]
    second = [nn.Linear(width, width), nn.ReLU()]
    last = nn.Linear(width, classes)
    if dropout_first:
        return nn.Sequential(nn.Dropout(), *first, nn.Dropout(), *second, last)
    return nn.Sequential(*first, nn.Dropout(), *second, nn.Dropout(), last)
