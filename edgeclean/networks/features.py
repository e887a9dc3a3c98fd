"""Features of a network at a few depths, and a student's distance from its teacher's.

Unlearning triggers and recovering accuracy compare a student with its teacher by features beside
outputs (FitNets, Romero et al. 2015): images made without data say more of a network through its
maps than through its few logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

_MOST_TAPS = 8
UNIT_IMAGES = 256  # settle the units that distances are in


@contextmanager
def hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Have hooks meanwhile; they are removed at the end, however it comes."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


H = TypeVar("H", bound="Hooks")


class Hooks:
    """A context at whose end hooks are removed.

    Attributes:
        handles: of the hooks.
    """

    handles: Sequence[RemovableHandle] = ()

    def __enter__(self: H) -> H:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self.handles:
            handle.remove()


class Features(Hooks):
    """Keeps the outputs of some layers of the latest forward pass."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        self._kept: dict[str, Tensor] = {}
        self.handles = [
            module.get_submodule(name).register_forward_hook(self._keep(name)) for name in names
        ]

    def _keep(self, name: str) -> Any:
        def hook(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._kept[name] = output

        return hook

    def take(self) -> dict[str, Tensor]:
        """What was kept since the last take."""
        kept, self._kept = self._kept, {}
        return kept


def shared_taps(learner: nn.Module, master: nn.Module) -> list[str]:
    """Name at most `_MOST_TAPS` BatchNorms that both networks have, else convolutions; last first.

    The last tap is the one nearest the outputs; the others are spread evenly over the depth.
    """
    mine = {name for name, _ in learner.named_modules()}
    for kind in (nn.BatchNorm2d, nn.Conv2d):
        names = [n for n, layer in master.named_modules() if isinstance(layer, kind) and n in mine]
        if names:
            stride = -(-len(names) // _MOST_TAPS)
            return names[::-1][::stride]
    return []


@dataclass(frozen=True, slots=True)
class ChannelMoments:
    """What a map's channels are on some images: values a channel, and their mean and variance.

    Attributes:
        count: values of each channel.
        mean: of each channel, [c], in float64.
        variance: about the mean, [c], in float64.
    """

    count: int
    mean: Tensor
    variance: Tensor


def channel_moments(features: Mapping[str, Float[Tensor, "n c h w"]]) -> dict[str, ChannelMoments]:
    """Return the moments of every map, so that the maps themselves need not be kept."""
    found = {}
    for name, feature in features.items():
        variance, mean = torch.var_mean(feature.float(), (0, 2, 3), correction=0)
        count = feature.numel() // feature.shape[1]
        found[name] = ChannelMoments(count, mean.double(), variance.double())
    return found


def feature_scales(parts: Sequence[Mapping[str, ChannelMoments]]) -> dict[str, Tensor]:
    """One over the deviation of every channel, [1, c, 1, 1]: the unit that distances are in.

    Args:
        parts: the moments of the same maps, of one part of the images after the other.
    """
    scales = {}
    for name, first in parts[0].items():
        counts = first.mean.new_tensor([part[name].count for part in parts])
        shares, values = counts / counts.sum(), float(counts.sum())
        means = torch.stack([part[name].mean for part in parts])
        within = torch.stack([part[name].variance for part in parts])
        variance = shares @ (within + (means - shares @ means).square())
        unbiased = variance * values / max(1.0, values - 1)
        scales[name] = (unbiased + 1e-4).rsqrt().float().view(1, -1, 1, 1)
    return scales


def of_channels(
    features: Mapping[str, Float[Tensor, "n c h w"]], kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The features of a network whose channels were all there, of those that another has left."""
    return {
        name: feature if name not in kept else feature.index_select(1, kept[name])
        for name, feature in features.items()
    }


def feature_distance(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], scales: Mapping[str, Tensor], clean: int
) -> Float[Tensor, ""]:
    """Mean squared distance in units of each channel's deviation, on the unattacked images.

    A map of a student that sees its images smaller is compared with the teacher's means there.
    """
    distances = [
        _ScaledDistance.apply(own[name][:clean], _at(feature, own[name]), scales[name])  # type: ignore[no-untyped-call]
        for name, feature in given.items()
    ]
    return torch.stack(distances).mean() if distances else torch.zeros(())


def _at(feature: Tensor, other: Tensor) -> Tensor:
    """A map at the height and width of another."""
    if feature.shape[2:] == other.shape[2:]:
        return feature
    height, width = other.shape[2:]
    return functional.adaptive_avg_pool2d(feature, (height, width))


class _ScaledDistance(torch.autograd.Function):
    """Mean of ((own - given) * scale)^2, with as few passes over the maps as it takes.

    The maps are the largest tensors of a step: kept in their own precision up to the mean, and the
    gradient is one product of what the forward pass left.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, given: Tensor, scale: Tensor) -> Tensor:
        """The mean, in float32."""
        difference = (own - given).mul_(scale.to(own.dtype))
        ctx.save_for_backward(difference, scale)
        # A sum that is asked for in float32 would copy the map into float32 first.
        norm = torch.linalg.vector_norm(difference).float()
        mean: Tensor = norm.square() / difference.numel()
        return mean

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient by ``own``: 2 (own - given) scale^2 over the number of values."""
        difference, scale = ctx.saved_tensors
        slope = (2 / difference.numel()) * gradient * scale
        return difference * slope.to(difference.dtype), None, None
