"""Residual networks: the CIFAR ones, ResNet-18/34/50, PreActResNet-18 and WideResNets.

Naming variants that published checkpoints use, told apart by their keys:

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

from edgeclean.loading.architectures.residual_blocks import (
    BasicBlock,
    BlockShape,
    Bottleneck,
    PreActBlock,
)
from edgeclean.states import ModelSpec

Builder = Callable[[ModelSpec, Collection[str]], nn.Module]
Block = type[BasicBlock] | type[Bottleneck] | type[PreActBlock]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualPlan:
    """What tells one residual network from another.

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

    block: Block
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    stem: int
    first_norm: bool = True
    last_norm: str = ""
    imagenet_stem: bool = False
    stages: str = "layer{}"
    stage_layers: str = ""


class ResidualNetwork(nn.Module):
    """A stem, stages of blocks that halve the plane from the second on, mean, a linear head."""

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
        """Normalised images [n, c, h, w] to logits [n, classes]."""
        for name in self.order:
            images = self.get_submodule(name)(images)
        return images

    def _append(self, **modules: nn.Module) -> list[str]:
        for name, module in modules.items():
            self.add_module(name, module)
        return list(modules)


def cifar_resnet(depth: int) -> Builder:
    """ResNet-20, 32, 44, 56 or 110 with 16, 32 and 64 channels."""
    blocks = (depth - 2) // 6

    def build(spec: ModelSpec, keys: Collection[str]) -> nn.Module:
        plan = ResidualPlan(block=BasicBlock, depths=(blocks,) * 3, widths=(16, 32, 64), stem=16)
        return ResidualNetwork(plan, spec, head=_head(keys), shortcut=_projection(keys, ""))

    return build


def resnet(depth: int, *, imagenet_stem: bool) -> Builder:
    """ResNet-18, 34 or 50; with a 3x3 stem and no max-pooling for CIFAR."""

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
    """PreActResNet-18 for CIFAR."""
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
    """WideResNet of Zagoruyko and Komodakis (2016)."""
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
