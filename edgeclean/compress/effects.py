"""What every layer may become: its candidates, each with its effect on the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.compress.candidates import (
    Candidate,
    CandidateLimits,
    candidate,
    dense_candidate,
    list_candidates,
)
from edgeclean.compress.factorisation import Ranks
from edgeclean.compress.fit import Fit
from edgeclean.compress.latency_table import LayerTimes
from edgeclean.compress.planned_network import PlannedNetwork
from edgeclean.compress.settings import Cost, RankSettings
from edgeclean.errors import UsageError
from edgeclean.networks.layers import Layer, require_layers
from edgeclean.progress import Progress

_PROBES = 6
_LEAST = 1e-12  # losses and effects are interpolated on logarithms


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCandidates:
    """A layer's candidates, the effect of each, and the one convolution that it is.

    Attributes:
        timed: False for a layer that the given latency table does not know.
    """

    candidates: tuple[Candidate, ...]
    effects: tuple[float, ...]
    dense: Candidate
    timed: bool = True


def check_overrides(network: PlannedNetwork, settings: RankSettings) -> None:
    """Refuse ranks for layers that do not exist or may not be factored.

    Raises:
        UsageError: names the layer, and why.
    """
    require_layers("the rank override", settings.overrides, network.layers)
    for name in settings.overrides:
        if reason := network.layers[name].reason:
            raise UsageError(f"{name} cannot be given ranks: {reason}; drop its override")


def all_candidates(
    network: PlannedNetwork,
    settings: RankSettings,
    cost: Cost,
    times: Mapping[str, LayerTimes] | None,
    progress: Progress,
) -> dict[str, LayerCandidates]:
    """The candidates of every layer that may be factored, by its name.

    Args:
        network: what ranks are chosen for.
        settings: which candidates, and how their effects are found.
        cost: that the goal is in.
        times: by layer, of the latency table; None without one. A layer that the table does not
            know has the one candidate that it is.
        progress: told after every layer.

    Raises:
        UsageError: the ranks of an override do not fit.
        InputRejectedError: a layer holds NaN or infinite weights.
    """
    effect = None
    if network.batch is not None and settings.sensitivity == "output":
        effect = OutputEffect(network.module, network.batch)
    limits = CandidateLimits(
        cost=cost, rank_multiple=settings.rank_multiple, least_gain=settings.least_gain
    )
    found: dict[str, LayerCandidates] = {}
    for done, name in enumerate(network.convs):
        progress("Measuring layers", done, len(network.convs))
        layer, fit = network.layers[name], network.fit(name)
        known = None if times is None else times.get(name)
        dense = dense_candidate(layer, known)
        if name in settings.overrides:
            listed: tuple[Candidate, ...] = (_forced(layer, fit, settings.overrides[name], known),)
        elif times is not None and known is None:
            found[name] = LayerCandidates(
                candidates=(dense,), effects=(0.0,), dense=dense, timed=False
            )
            continue
        else:
            listed = list_candidates(layer, fit, limits=limits, times=known)
        effects = (
            [one.loss for one in listed] if effect is None else effect.effects(name, fit, listed)
        )
        found[name] = LayerCandidates(candidates=listed, effects=tuple(effects), dense=dense)
    progress("Measuring layers", len(network.convs), len(network.convs))
    return found


class OutputEffect:
    """How much a network's outputs on fixed images change when one layer alone is truncated.

    The effect of a change is the squared difference of the outputs over their square, both about
    their mean over the classes, which the softmax does not see.
    """

    def __init__(self, module: nn.Module, images: Float[Tensor, "n c h w"]) -> None:
        """Take a network in its original shape (it is changed while measuring, and put back)."""
        self._module = module
        self._images = images
        self._outputs = self._run()
        self._square = float(self._outputs.square().sum())

    def effects(self, layer: str, fit: Fit, candidates: Sequence[Candidate]) -> list[float]:
        """The effect of every candidate of a layer.

        A few are measured; between them the effect is interpolated in the loss, both on a
        logarithmic scale, and never falls as the loss grows.
        """
        factored = [one for one in candidates if one.ranks is not None]
        spread = np.linspace(0, len(factored) - 1, min(_PROBES, len(factored)))
        probed = [factored[index] for index in sorted({round(place) for place in spread})]
        if not probed:
            return [0.0 for _ in candidates]
        points = sorted((one.loss, self._measure(layer, fit, one.ranks)) for one in probed)
        losses = np.log([max(loss, _LEAST) for loss, _ in points])
        effects = np.log(np.maximum.accumulate([max(effect, _LEAST) for _, effect in points]))
        return [
            0.0
            if one.ranks is None
            else float(np.exp(np.interp(np.log(max(one.loss, _LEAST)), losses, effects)))
            for one in candidates
        ]

    def _measure(self, layer: str, fit: Fit, ranks: Ranks | None) -> float:
        if ranks is None:
            return 0.0
        weight = self._module.get_parameter(f"{layer}.weight")
        original = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.copy_(fit.at(ranks).kernel())
            change = self._run() - self._outputs
        finally:
            with torch.no_grad():
                weight.copy_(original)
        return float(change.square().sum()) / self._square if self._square > 0 else 0.0

    def _run(self) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = self._module(self._images).flatten(1).double()
        return outputs - outputs.mean(dim=1, keepdim=True) if outputs.shape[1] > 1 else outputs


def _forced(layer: Layer, fit: Fit, ranks: Ranks, times: LayerTimes | None) -> Candidate:
    """The candidate that an override asks for.

    Raises:
        UsageError: the ranks do not fit, or the layer would not get smaller.
    """
    shape = layer.shapes[0]
    if not all(1 <= rank <= most for rank, most in zip(ranks, shape.channels, strict=True)):
        raise UsageError(
            f"ranks {list(ranks)} of {layer.name} must lie between [1, 1] and "
            f"{list(shape.channels)}"
        )
    if shape.pointwise and ranks[0] != ranks[1]:
        raise UsageError(
            f"{layer.name} is a 1x1 convolution and has one rank; give [r, r], not {list(ranks)}"
        )
    asked, dense = candidate(layer, fit, ranks, times), dense_candidate(layer, times)
    if asked.params >= dense.params or asked.macs > dense.macs:
        raise UsageError(
            f"ranks {list(ranks)} make {layer.name} no smaller ({asked.params} parameters and "
            f"{asked.macs} MACs against {dense.params} and {dense.macs}); lower them, or keep it"
        )
    return asked
