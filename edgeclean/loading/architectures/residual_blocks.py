"""The blocks of residual networks (He et al., 2016): convolutions with a shortcut around them.

Layers carry the names that checkpoints use: ``conv1``, ``bn1``, ``conv2``, ... and, where the
shape changes, a projection named ``shortcut`` or ``downsample`` (``.0`` convolution, ``.1``
BatchNorm). Each convolution is registered right before its BatchNorm.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """How one block changes its input.

    Attributes:
        channels_in: of the block's input.
        width: of its 3x3 convolutions.
        stride: of its first 3x3 convolution.
        shortcut: the projection's name, or "" for option A, which has no weights.
    """

    channels_in: int
    width: int
    stride: int
    shortcut: str


class OptionAShortcut(nn.Module):
    """Every second pixel, and zeros for the new channels, half before and half after the old ones.

    A checkpoint holds nothing of this layer, so where its author padded otherwise (all new
    channels after the old ones, as some codes do) only a drop in accuracy shows it: name the
    author's code by ``--arch file.py:callable`` then.
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, images: Tensor) -> Tensor:
        """[n, c, h, w] to [n, c + new_channels, h / 2, w / 2], rounded up."""
        return functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        width = shape.width
        self.conv1 = nn.Conv2d(shape.channels_in, width, 3, shape.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.around = _add_shortcut(self, shape, width)
        self.relu2 = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """[n, channels_in, h, w] to [n, width, h / stride, w / stride], rounded up."""
        inner = self.relu1(self.bn1(self.conv1(images)))
        inner = self.bn2(self.conv2(inner))
        total: Tensor = self.relu2(inner + self.get_submodule(self.around)(images))
        return total


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride, as torchvision and most CIFAR codes have it) and 1x1."""

    expansion = 4

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        width, channels_out = shape.width, shape.width * self.expansion
        self.conv1 = nn.Conv2d(shape.channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, shape.stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.around = _add_shortcut(self, shape, channels_out)
        self.relu3 = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """[n, channels_in, h, w] to [n, 4 * width, h / stride, w / stride], rounded up."""
        inner = self.relu1(self.bn1(self.conv1(images)))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        total: Tensor = self.relu3(inner + self.get_submodule(self.around)(images))
        return total


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each convolution (He et al., 2016, "Identity mappings").

    The projection (a bare convolution) sees the activated input, as the published codes have it.
    """

    expansion = 1

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        width = shape.width
        self.bn1 = nn.BatchNorm2d(shape.channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(shape.channels_in, width, 3, shape.stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.projection = ""
        if changes_shape(shape, width):
            self.projection = shape.shortcut
            convolution = nn.Conv2d(shape.channels_in, width, 1, shape.stride, bias=False)
            # kuangliu's code holds it in a Sequential, the WideResNet codes hold it bare.
            bare = self.projection == "convShortcut"
            self.add_module(self.projection, convolution if bare else nn.Sequential(convolution))

    def forward(self, images: Tensor) -> Tensor:
        """[n, channels_in, h, w] to [n, width, h / stride, w / stride], rounded up."""
        activated = self.relu1(self.bn1(images))
        inner = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        if self.projection:
            images = self.get_submodule(self.projection)(activated)
        total: Tensor = inner + images
        return total


def changes_shape(shape: BlockShape, channels_out: int) -> bool:
    """Whether the input of a block cannot simply be added to its output."""
    return shape.stride != 1 or shape.channels_in != channels_out


def _add_shortcut(block: nn.Module, shape: BlockShape, channels_out: int) -> str:
    """Register the way around the convolutions; returns its name."""
    around: nn.Module = nn.Identity()
    if changes_shape(shape, channels_out):
        if shape.shortcut:
            convolution = nn.Conv2d(shape.channels_in, channels_out, 1, shape.stride, bias=False)
            around = nn.Sequential(convolution, nn.BatchNorm2d(channels_out))
        else:
            around = OptionAShortcut(channels_out - shape.channels_in)
    name = shape.shortcut or "shortcut"
    block.add_module(name, around)
    return name
