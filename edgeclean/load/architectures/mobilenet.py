"""MobileNetV2 (Sandler et al., 2018) in torchvision's naming.

``cifar-mobilenet-v2`` has the same keys and shapes, but the stem and the second group of blocks
keep the plane (stride 1), as the published CIFAR codes have it; only the name distinguishes them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import Tensor, nn

from edgeclean.networks.state import ModelSpec

# expansion, channels, blocks, stride of the first block: table 2 of the paper.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM, _LAST = 32, 1280


class InvertedResidual(nn.Module):
    """A block of 1x1 to more channels, 3x3 depthwise, 1x1 back; a shortcut where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_bn_relu(channels_in, hidden, 1)]
        layers.append(_conv_bn_relu(hidden, hidden, 3, stride=stride, groups=hidden))
        layers += [nn.Conv2d(hidden, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, images: Tensor) -> Tensor:
        """Map [n, c, h, w] to the same shape, or to half the plane and other channels."""
        inner: Tensor = self.conv(images)
        return images + inner if self.adds else inner


class MobileNetV2(nn.Module):
    """MobileNetV2: stem, seven groups of inverted residuals, a last 1x1, mean, a linear head."""

    def __init__(self, spec: ModelSpec, *, small_images: bool) -> None:
        super().__init__()
        stem_stride = 1 if small_images else 2
        layers: list[nn.Module] = [_conv_bn_relu(spec.input_shape[0], _STEM, 3, stride=stem_stride)]
        channels = _STEM
        for group, (expansion, width, blocks, stride) in enumerate(_GROUPS):
            for index in range(blocks):
                keeps_plane = index > 0 or (small_images and group == 1)
                layers.append(
                    InvertedResidual(channels, width, expansion, 1 if keeps_plane else stride)
                )
                channels = width
        layers.append(_conv_bn_relu(channels, _LAST, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(_LAST, spec.classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [n, c, h, w] to logits [n, classes]."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(images))))
        return logits


def mobilenet_v2(*, small_images: bool) -> Callable[[ModelSpec, Collection[str]], nn.Module]:
    """Return a builder of MobileNetV2; with ``small_images``, two of its strides are 1, not 2."""

    def build(spec: ModelSpec, keys: Collection[str]) -> nn.Module:
        return MobileNetV2(spec, small_images=small_images)

    return build


def _conv_bn_relu(
    channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    convolution = nn.Conv2d(
        channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU6())
