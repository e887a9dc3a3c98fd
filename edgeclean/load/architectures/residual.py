"""Residual networks: the CIFAR ones, ResNet-18/34/50, PreActResNet-18 and WideResNets.

Each is a stem, stages of blocks (He et al., 2016: convolutions with a shortcut around them), a mean
over the plane and a linear head. Layers carry the names that checkpoints use: ``conv1``, ``bn1``,
``conv2``, ... and, where the shape changes, a projection named ``shortcut`` or ``downsample``
(``.0`` convolution, ``.1`` BatchNorm). Each convolution is registered right before its BatchNorm.

The naming variants of published checkpoints are distinguished by their keys:

- head ``fc`` or ``linear``;
- projections ``shortcut.0/.1`` or ``downsample.0/.1``; a CIFAR ResNet-20..110 with neither has
  option A shortcuts (He et al., 2016, section 4.2), which have no weights;
- PreActResNet-18 with a last BatchNorm and ReLU (``bn.*`` in the checkpoint) or without;
- WideResNets in the common ``block1.layer.0`` naming, projection ``convShortcut``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from edgeclean.networks.state import ModelSpec

Builder = Callable[[ModelSpec, Collection[str]], nn.Module]


def cifar_resnet(depth: int) -> Builder:
    """Return a builder of ResNet-20, 32, 44, 56 or 110 with 16, 32 and 64 channels."""
    blocks = (depth - 2) // 6

    def build(spec: ModelSpec, keys: Collection[str]) -> nn.Module:
        plan = ResidualPlan(block=BasicBlock, depths=(blocks,) * 3, widths=(16, 32, 64), stem=16)
        return ResidualNetwork(plan, spec, head=_head(keys), shortcut=_projection(keys, ""))

    return build


def resnet(depth: int, *, imagenet_stem: bool) -> Builder:
    """Return a builder of ResNet-18, 34 or 50; for CIFAR with a 3x3 stem and no max-pooling."""

    def build(spec: ModelSpec, keys: Collection[str]) -> nn.Module:
        plan = ResidualPlan(
            block=Bottleneck if depth == 50 else BasicBlock,
            depths=(2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3),
            widths=(64, 128, 256, 512),
            stem=64,
            imagenet_stem=imagenet_stem,
        )
        projection = _projection(keys, "downsample")
        return ResidualNetwork(plan, spec, head=_head(keys), shortcut=projection)

    return build


def preact_resnet18(spec: ModelSpec, keys: Collection[str]) -> nn.Module:
    """Build PreActResNet-18 for CIFAR."""
    plan = ResidualPlan(
        block=PreActBlock,
        depths=(2, 2, 2, 2),
        widths=(64, 128, 256, 512),
        stem=64,
        first_norm=False,
        last_norm="bn" if "bn.weight" in keys else "",
    )
    return ResidualNetwork(
        plan, spec, head=_head(keys, "linear"), shortcut=_projection(keys, "shortcut")
    )


def wide_resnet(depth: int, widen: int) -> Builder:
    """Return a builder of the WideResNet of Zagoruyko and Komodakis (2016)."""
    blocks = (depth - 4) // 6

    def build(spec: ModelSpec, keys: Collection[str]) -> nn.Module:
        plan = ResidualPlan(
            block=PreActBlock,
            depths=(blocks,) * 3,
            widths=(16 * widen, 32 * widen, 64 * widen),
            stem=16,
            first_norm=False,
            last_norm="bn1",
            stages="block{}",
            stage_layers="layer",
        )
        return ResidualNetwork(plan, spec, head=_head(keys), shortcut="convShortcut")

    return build


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualPlan:
    """The structure of one residual network.

    Attributes:
        block: the class of its blocks.
        depths: blocks in each stage.
        widths: channels of each stage, before the block's expansion.
        stem: channels of the first convolution.
        first_norm: BatchNorm and ReLU follow the first convolution.
        last_norm: the name of a last BatchNorm (with ReLU) before the pooling, or "".
        imagenet_stem: 7x7 stride 2 and max-pooling, rather than 3x3.
        stages: the stages' names; "{}" is the stage's number from 1.
        stage_layers: a name between the stage and its blocks' numbers, or "".
    """

    block: type[BasicBlock] | type[Bottleneck] | type[PreActBlock]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int
    first_norm: bool = True
    last_norm: str = ""
    imagenet_stem: bool = False
    stages: str = "layer{}"
    stage_layers: str = ""


class ResidualNetwork(nn.Module):
    """A residual network: a stem, stages that halve the plane from the second on, mean, linear."""

    def __init__(self, plan: ResidualPlan, spec: ModelSpec, *, head: str, shortcut: str) -> None:
        super().__init__()
        kernel, stride = (7, 2) if plan.imagenet_stem else (3, 1)
        self.conv1 = nn.Conv2d(
            spec.input_shape[0], plan.stem, kernel, stride, kernel // 2, bias=False
        )
        order = ["conv1"]
        if plan.first_norm:
            order += self._append(bn1=nn.BatchNorm2d(plan.stem), relu=nn.ReLU())
        if plan.imagenet_stem:
            order += self._append(maxpool=nn.MaxPool2d(3, 2, 1))
        channels = plan.stem
        for index, (depth, width) in enumerate(zip(plan.depths, plan.widths, strict=True)):
            first = BlockShape(
                channels_in=channels, width=width, stride=2 if index else 1, shortcut=shortcut
            )
            stage = _stage(plan, first, depth)
            order += self._append(**{plan.stages.format(index + 1): stage})
            channels = width * plan.block.expansion
        if plan.last_norm:
            order += self._append(**{plan.last_norm: nn.BatchNorm2d(channels)}, relu=nn.ReLU())
        order += self._append(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        order += self._append(**{head: nn.Linear(channels, spec.classes)})
        self.order = tuple(order)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [n, c, h, w] to logits [n, classes]."""
        for name in self.order:
            images = self.get_submodule(name)(images)
        return images

    def _append(self, **modules: nn.Module) -> list[str]:
        for name, module in modules.items():
            self.add_module(name, module)
        return list(modules)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """The channels and the stride of one block, and the name of its projection.

    Attributes:
        channels_in: the channels of the block's input.
        width: the channels of its 3x3 convolutions.
        stride: the stride of its first 3x3 convolution.
        shortcut: the projection's name, or "" for option A, which has no weights.
    """

    channels_in: int
    width: int
    stride: int
    shortcut: str


class BasicBlock(nn.Module):
    """A block of two 3x3 convolutions."""

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
        """Map [n, channels_in, h, w] to [n, width, h / stride, w / stride], rounded up."""
        inner = self.relu1(self.bn1(self.conv1(images)))
        inner = self.bn2(self.conv2(inner))
        total: Tensor = self.relu2(inner + self.get_submodule(self.around)(images))
        return total


class Bottleneck(nn.Module):
    """A block of 1x1, 3x3 (with the stride, as in torchvision and most CIFAR codes) and 1x1."""

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
        """Map [n, channels_in, h, w] to [n, 4 * width, h / stride, w / stride], rounded up."""
        inner = self.relu1(self.bn1(self.conv1(images)))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        inner = self.bn3(self.conv3(inner))
        total: Tensor = self.relu3(inner + self.get_submodule(self.around)(images))
        return total


class PreActBlock(nn.Module):
    """BatchNorm and ReLU come before each convolution (He et al., 2016, "Identity mappings").

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
        """Map [n, channels_in, h, w] to [n, width, h / stride, w / stride], rounded up."""
        activated = self.relu1(self.bn1(images))
        inner = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        if self.projection:
            images = self.get_submodule(self.projection)(activated)
        total: Tensor = inner + images
        return total


class OptionAShortcut(nn.Module):
    """A shortcut without weights: every second pixel, and zeros for the new channels.

    Half of the new channels come before the old ones and half after them.

    A checkpoint holds nothing of this layer, so where its author padded otherwise (all new
    channels after the old ones, as some codes do) only a drop in accuracy shows it: name the
    author's code by ``--arch file.py:callable`` then.
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, images: Tensor) -> Tensor:
        """Map [n, c, h, w] to [n, c + new_channels, h / 2, w / 2], rounded up."""
        return functional.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def changes_shape(shape: BlockShape, channels_out: int) -> bool:
    """Return whether the input of a block cannot simply be added to its output."""
    return shape.stride != 1 or shape.channels_in != channels_out


def _add_shortcut(block: nn.Module, shape: BlockShape, channels_out: int) -> str:
    """Register the shortcut around the convolutions; return its name."""
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


def _stage(plan: ResidualPlan, first: BlockShape, depth: int) -> nn.Sequential:
    blocks = nn.Sequential(plan.block(first))
    for _ in range(depth - 1):
        later = BlockShape(
            channels_in=first.width * plan.block.expansion,
            width=first.width,
            stride=1,
            shortcut=first.shortcut,
        )
        blocks.append(plan.block(later))
    if not plan.stage_layers:
        return blocks
    named = nn.Sequential()
    named.add_module(plan.stage_layers, blocks)
    return named


def _head(keys: Collection[str], default: str = "fc") -> str:
    other = "linear" if default == "fc" else "fc"
    return other if f"{other}.weight" in keys else default


def _projection(keys: Collection[str], default: str) -> str:
    found = [name for name in ("shortcut", "downsample") if f"layer2.0.{name}.0.weight" in keys]
    return found[0] if found else default
