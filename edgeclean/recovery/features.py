"""Features of student and teacher side by side: the same layers, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_MOST_TAPS = 8


class Features:
    """Keeps the outputs of some layers of the latest forward pass."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        self._kept: dict[str, Tensor] = {}
        self._handles = [
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

    def __enter__(self) -> Features:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()


def shared_taps(learner: nn.Module, master: nn.Module) -> list[str]:
    """At most `_MOST_TAPS` BatchNorms that both networks have, else convolutions, the last first.

    The last tap is the one nearest the outputs; the others are spread evenly over the depth.
    """
    mine = {name for name, _ in learner.named_modules()}
    for kind in (nn.BatchNorm2d, nn.Conv2d):
        names = [n for n, layer in master.named_modules() if isinstance(layer, kind) and n in mine]
        if names:
            stride = -(-len(names) // _MOST_TAPS)
            return names[::-1][::stride]
    return []


def feature_scales(features: Mapping[str, Float[Tensor, "n c h w"]]) -> dict[str, Tensor]:
    """One over the deviation of every channel, [1, c, 1, 1]: the unit that distances are in."""
    return {
        name: (feature.float().var((0, 2, 3), keepdim=True) + 1e-4).rsqrt()
        for name, feature in features.items()
    }


def feature_distance(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], scales: Mapping[str, Tensor], clean: int
) -> Float[Tensor, ""]:
    """Mean squared distance in units of each channel's deviation, on the unattacked images.

    Kept in the features' own precision up to the mean: the maps are the largest tensors of a step,
    and every pass over them in float32 costs as much as a layer.
    """
    distances = []
    for name, feature in given.items():
        difference = (own[name][:clean] - feature) * scales[name].to(feature.dtype)
        distances.append(difference.square().mean(dtype=torch.float32))
    return torch.stack(distances).mean() if distances else torch.zeros(())
