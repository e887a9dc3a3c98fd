"""Build a MobileNetV2 of half the width for 32x32 images, which a processor core can train.

The blocks are those of the paper (Sandler et al., 2018), each with half the channels; the stem and
the last two groups keep the plane, so that 32x32 images end as 4x4 instead of one pixel.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgeclean.load.architectures.mobilenet import InvertedResidual

# expansion, channels, blocks, stride of the first block: table 2 of the paper, channels halved.
_GROUPS = (
    (1, 8, 1, 1),
    (6, 16, 2, 2),
    (6, 16, 3, 2),
    (6, 32, 4, 2),
    (6, 48, 3, 1),
    (6, 80, 3, 1),
    (6, 160, 1, 1),
)
_STEM, _LAST = 16, 640


class HalfMobileNetV2(nn.Module):
    """A stem, seven groups of inverted residuals, a last 1x1, the mean, a linear head."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv_bn_relu(channels, _STEM, 3)]
        width = _STEM
        for expansion, widened, blocks, stride in _GROUPS:
            for index in range(blocks):
                block_stride = stride if index == 0 else 1
                layers.append(InvertedResidual(width, widened, expansion, block_stride))
                width = widened
        layers.append(_conv_bn_relu(width, _LAST, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(_LAST, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [n, c, h, w] to logits [n, classes]."""
        logits: Tensor = self.classifier(self.flatten(self.avgpool(self.features(images))))
        return logits


def half_mobilenet_v2(classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Return one with fresh weights: 12 million multiply-accumulates for a 32x32 image."""
    return HalfMobileNetV2(classes, input_shape[0])


def _conv_bn_relu(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, 1, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU6())
