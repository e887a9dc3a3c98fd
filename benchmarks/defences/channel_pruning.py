"""Prune channels after a defence, as in Clean & Compact's Table 2: purify first, then compress.

The channels with the smallest BatchNorm scales go first, the same share in every layer and those
that a shortcut ties together as one (torch-pruning; Fang et al. 2023, "DepGraph"), so the channels
that ANP or CLP set to zero are the first to go. Nothing is tuned afterwards: Table 2 gives its
rivals no data to do it with. Channels that pass an option-A shortcut stay: its zero padding ties
them in a way that torch-pruning does not see (ResNet-18 has projections instead).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.data.images import LabelledImages
from benchmarks.defences.base import Defence, copied, need_batch_norms
from edgeclean.errors import RatioError, UsageError
from edgeclean.load.architectures.residual import BasicBlock, OptionAShortcut
from edgeclean.networks.cost import count_macs
from edgeclean.networks.state import Network, TruncatedNetwork, following, record

HALVINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningSettings:
    """Settings of the pruning.

    Attributes:
        ratio: the network's multiply-accumulates divided by the pruned network's.
    """

    ratio: float = 2.0

    def __post_init__(self) -> None:
        if self.ratio < 1:
            raise UsageError(f"ratio is {self.ratio}; it must be at least 1")


def pruned_after(defend: Defence, settings: PruningSettings) -> Defence:
    """Return a function that defends a network and then prunes it."""

    def both(network: Network, clean: LabelledImages, seed: int) -> Network:
        return prune_channels(defend(network, clean, seed), settings)

    return both


def prune_channels(network: Network, settings: PruningSettings | None = None) -> TruncatedNetwork:
    """Prune channels; their share is bisected until the ratio is met from above.

    Raises:
        UsageError: the network has no BatchNorm.
        RatioError: the ratio is not met with nearly every channel gone.
    """
    settings = settings or PruningSettings()
    need_batch_norms(network.module, "channel pruning")
    shape = network.spec.input_shape
    allowed = count_macs(network.module, shape) / settings.ratio
    low, high = 0.0, 1.0
    best: nn.Module | None = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        module = _without(network, middle)
        if count_macs(module, shape) <= allowed:
            high, best = middle, module
        else:
            low = middle
    if best is None:
        raise RatioError(f"channel pruning: ratio {settings.ratio:g} is out of reach; ask for less")
    made_by = record("channel-pruning", best, network.spec, settings, {"share": round(high, 6)})
    return following(network, TruncatedNetwork, best, made_by)


def _without(network: Network, share: float) -> nn.Module:
    """Return a copy that lacks this share of every layer's channels; the classes stay."""
    import torch_pruning  # of the extra "bench": a machine without it runs the other defences

    module = copied(network)
    device = next(module.parameters()).device
    pruner = torch_pruning.pruner.BasePruner(
        module,
        torch.zeros(1, *network.spec.input_shape, device=device),
        importance=torch_pruning.importance.GroupMagnitudeImportance(
            p=1, target_types=[nn.modules.batchnorm._BatchNorm]
        ),
        pruning_ratio=share,
        ignored_layers=_left_alone(module),
    )
    pruner.step()
    return module.eval()


def _left_alone(module: nn.Module) -> list[nn.Module]:
    """Return the layers that stay: the last linear one, and those of option-A shortcuts."""
    layers = list(module.modules())
    left: list[nn.Module] = [layer for layer in layers if isinstance(layer, nn.Linear)][-1:]
    if any(isinstance(layer, OptionAShortcut) for layer in layers):
        inner = {id(block.conv1) for block in layers if isinstance(block, BasicBlock)}
        left += [c for c in layers if isinstance(c, nn.Conv2d) and id(c) not in inner]
    return left
