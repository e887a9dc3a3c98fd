"""What a layer could become: ranks worth a look, with their exact cost and what they lose.

What every layer may become: its candidates, each with its effect on the whole network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.compression.factorisation import (
    ModeRanks,
    Ranks,
    Separable,
    cost_of,
    is_separated,
    ranks_as_json,
)
from edgeclean.compression.fit import Fit
from edgeclean.compression.flow import Flow
from edgeclean.compression.latency_table import LayerTimes, TimeKind
from edgeclean.compression.planned_network import PlannedNetwork, Refit, put_
from edgeclean.compression.rank_grids import (
    form_of,
    rank_grid,
    smallest_of,
    timed_grid,
    useful_rank,
)
from edgeclean.compression.settings import Cost, Form, RankSettings
from edgeclean.errors import UsageError
from edgeclean.networks.layers import Layer, require_layers
from edgeclean.progress import Progress

_MOST_CANDIDATES = 48
NO_TIME: tuple[int, TimeKind] = (0, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One layer at certain ranks.

    Attributes:
        ranks: (r_out, r_in), where a rank equal to its channel count means that this mode is not
            factored; or those of a separable kernel. None is the one convolution that the layer is.
        params: of the layer at these ranks, its bias included.
        macs: of the layer at these ranks, for one image.
        loss: what these ranks lose, a fraction in [0, 1]; see `fit.Fit`.
        ns: how many nanoseconds it takes by the latency table; 0 without one.
        time_kind: whether the table holds these ranks; empty without a table.
        channels: (out, in) of one convolution that is left with fewer; None for all of them.
    """

    ranks: Ranks | None
    params: int
    macs: int
    loss: float = 0.0
    ns: int = 0
    time_kind: TimeKind = ""
    channels: tuple[int, int] | None = None

    def cost(self, measure: Cost) -> int:
        """Parameters, multiply-accumulates, or nanoseconds."""
        if measure == "latency":
            return self.ns
        return self.params if measure == "params" else self.macs


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateLimits:
    """Which candidates of a layer are worth choosing from.

    Attributes:
        cost: that the network's budget is in.
        rank_multiple: see `allowed_ranks`.
        least_gain: the share of the layer's cost that a candidate must save.
        forms: what the layer may become.
    """

    cost: Cost
    rank_multiple: int
    least_gain: float
    forms: tuple[Form, ...] = ("tucker",)

    @classmethod
    def of(cls, settings: RankSettings, cost: Cost) -> CandidateLimits:
        """The limits of a choice whose budget is in this cost."""
        return cls(
            cost=cost,
            rank_multiple=settings.rank_multiple,
            least_gain=settings.least_gain,
            forms=settings.of_layers,
        )


def dense_candidate(layer: Layer, times: LayerTimes | None = None) -> Candidate:
    """The layer as the one convolution that it is."""
    return _candidate(layer, None, 0.0, times)


def candidate(layer: Layer, fit: Fit, ranks: Ranks, times: LayerTimes | None = None) -> Candidate:
    """The layer at these ranks; those of a 1x1 convolution must be equal."""
    return _candidate(layer, ranks, fit.loss(ranks), times)


def list_candidates(
    layer: Layer, fit: Fit, *, limits: CandidateLimits, times: LayerTimes | None = None
) -> tuple[Candidate, ...]:
    """The candidates worth choosing from, cheapest first, the one convolution last.

    Of the ranks of one cost only those that lose least are kept (r_out and r_in need not be
    alike), and only if they save at least ``least_gain`` of the layer's cost without raising the
    other measure. With times the ranks are those that were measured, each must save as large a
    share of the layer's time as well, and of two the one that is no cheaper, no faster and no more
    faithful is dropped.
    """
    dense = dense_candidate(layer, times)
    grid = _grid(layer, limits, times)
    every = (candidate(layer, fit, ranks, times) for ranks in grid)
    found = [one for one in every if _is_worthwhile(one, dense, limits)]
    found.sort(key=lambda one: (one.cost(limits.cost), one.loss, one.ns))
    front: list[Candidate] = []
    for one in found:
        if all(one.loss < other.loss or one.ns < other.ns for other in front):
            front.append(one)
    return (*(_thinned(front, limits.cost) if times is None else front), dense)


def cheapest_candidate(
    layer: Layer, *, limits: CandidateLimits, times: LayerTimes | None = None
) -> Candidate:
    """The first of `list_candidates`, without a look at the weights; its loss is not known."""
    dense = dense_candidate(layer, times)
    grid = _grid(layer, limits, times)
    if times is None:
        grid = smallest_of(grid)
    every = (_candidate(layer, ranks, 0.0, times) for ranks in grid)
    found = (one for one in every if _is_worthwhile(one, dense, limits))
    return min(found, key=lambda one: one.cost(limits.cost), default=dense)


def _grid(layer: Layer, limits: CandidateLimits, times: LayerTimes | None) -> list[Ranks]:
    shape, multiple, forms = layer.shapes[0], limits.rank_multiple, limits.forms
    if times is None:
        return rank_grid(shape, multiple, forms)
    return timed_grid(shape, multiple, forms, times.ns)


def _is_worthwhile(one: Candidate, dense: Candidate, limits: CandidateLimits) -> bool:
    share = 1 - limits.least_gain
    return (
        one.cost(limits.cost) <= share * dense.cost(limits.cost)
        and one.params <= dense.params
        and one.macs <= dense.macs
        and one.ns <= share * dense.ns
    )


def _candidate(
    layer: Layer, ranks: Ranks | None, loss: float, times: LayerTimes | None
) -> Candidate:
    params, macs = cost_of(layer.shapes, ranks)
    bias = [weight for name, weight in layer.module.named_parameters() if name.endswith("bias")]
    ns, time_kind = NO_TIME if times is None else times.at(ranks)
    return Candidate(
        ranks=ranks,
        params=params + sum(weight.numel() for weight in bias),
        macs=macs,
        loss=loss,
        ns=ns,
        time_kind=time_kind,
    )


def _thinned(front: list[Candidate], measure: Cost) -> list[Candidate]:
    """Keep at most `_MOST_CANDIDATES`, spread evenly over the costs."""
    if len(front) <= _MOST_CANDIDATES:
        return front
    low, high = front[0].cost(measure), front[-1].cost(measure)
    steps = [low + (high - low) * i / (_MOST_CANDIDATES - 1) for i in range(_MOST_CANDIDATES)]
    picked = {max(i for i, one in enumerate(front) if one.cost(measure) <= step) for step in steps}
    return [front[i] for i in sorted(picked)]


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
    effect: OutputEffect | None = None,
) -> dict[str, LayerCandidates]:
    """The candidates of every layer that may be factored, by its name.

    Args:
        network: what ranks are chosen for.
        settings: which candidates, and how their effects are found.
        cost: that the goal is in.
        times: by layer, of the latency table; None without one. A layer that the table does not
            know has the one candidate that it is.
        progress: told after every layer.
        effect: measures changes of the outputs; None takes the losses.

    Raises:
        UsageError: the ranks of an override do not fit.
        InputRejectedError: a layer holds NaN or infinite weights.
    """
    limits = CandidateLimits.of(settings, cost)
    found: dict[str, LayerCandidates] = {}
    for done, name in enumerate(network.convs):
        progress("Measuring layers", done, len(network.convs))
        layer, asked = network.layers[name], settings.overridden.get(name)
        known = None if times is None else times.get(name)
        forced = None if asked is None else forced_candidate(layer, asked, known)
        fit = network.fit(name, settings.of_layers if asked is None else [form_of(asked)])
        dense = dense_candidate(layer, known)
        if asked is not None and forced is not None:
            listed: tuple[Candidate, ...] = (replace(forced, loss=fit.loss(asked)),)
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
        self._flow = Flow(module, images)
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
        points = [(one.loss, self._measure(layer, fit, one.ranks)) for one in probed]
        between = iter(self.between(points, [one.loss for one in factored]))
        return [0.0 if one.ranks is None else next(between) for one in candidates]

    def between(
        self, points: Sequence[tuple[float, float]], losses: Sequence[float]
    ) -> tuple[float, ...]:
        """The effects at these losses, interpolated between (loss, effect) that were measured."""
        ordered = sorted(points)
        known = np.log([max(loss, _LEAST) for loss, _ in ordered])
        effects = np.log(np.maximum.accumulate([max(effect, _LEAST) for _, effect in ordered]))
        return tuple(
            float(np.exp(np.interp(np.log(max(loss, _LEAST)), known, effects))) for loss in losses
        )

    def of_refits(self, refits: Mapping[str, Refit]) -> float:
        """The effect of other weights and biases in some layers."""
        kept = {name: self._module.get_submodule(name) for name in refits}
        before = {name: (layer.weight, layer.bias) for name, layer in kept.items()}
        try:
            for name, refit in refits.items():
                put_(kept[name], refit)
            return self._effect(min(refits, key=self._flow.place))
        finally:
            for name, (weight, bias) in before.items():
                kept[name].weight, kept[name].bias = weight, bias

    def _measure(self, layer: str, fit: Fit, ranks: Ranks | None) -> float:
        if ranks is None:
            return 0.0
        weight = self._module.get_parameter(f"{layer}.weight")
        original = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.copy_(fit.at(ranks).kernel())
            return self._effect(layer)
        finally:
            with torch.no_grad():
                weight.copy_(original)

    def _effect(self, first: str) -> float:
        """The effect of what was changed, of which this layer runs first."""
        change = self._run(first) - self._outputs
        return float(change.square().sum()) / self._square if self._square > 0 else 0.0

    def _run(self, first: str = "") -> Tensor:
        outputs = self._flow.outputs(first).flatten(1).double()
        return outputs - outputs.mean(dim=1, keepdim=True) if outputs.shape[1] > 1 else outputs


def output_effect(network: PlannedNetwork, settings: RankSettings) -> OutputEffect | None:
    """What weighs candidates by the outputs; None where losses do, or there are no images."""
    if network.heard is None or settings.sensitivity != "output":
        return None
    return OutputEffect(network.module, network.heard)


def forced_candidate(layer: Layer, ranks: Ranks, times: LayerTimes | None = None) -> Candidate:
    """The candidate that an override asks for; its loss is not known.

    Raises:
        UsageError: the ranks do not fit, or the layer would not get smaller.
    """
    if isinstance(ranks, Separable):
        _check_separable(layer, ranks)
    else:
        _check_modes(layer, ranks)
    asked, dense = _candidate(layer, ranks, 0.0, times), dense_candidate(layer, times)
    if asked.params >= dense.params or asked.macs > dense.macs:
        raise UsageError(
            f"ranks {ranks_as_json(ranks)} make {layer.name} no smaller ({asked.params} parameters "
            f"and {asked.macs} MACs against {dense.params} and {dense.macs}); lower them, or keep "
            "it"
        )
    return asked


def _check_modes(layer: Layer, ranks: ModeRanks) -> None:
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


def _check_separable(layer: Layer, ranks: Separable) -> None:
    shape = layer.shapes[0]
    if not is_separated(shape):
        kernel = "x".join(str(side) for side in shape.kernel)
        raise UsageError(
            f"{layer.name} has a {kernel} kernel, which no Kx1 and 1xK replace; give [r_out, r_in]"
        )
    most = useful_rank(shape, ranks.first)
    if not 1 <= ranks.rank <= most:
        raise UsageError(
            f"the rank in {ranks_as_json(ranks)} of {layer.name} must lie between 1 and {most}, or "
            "the layer would not get smaller"
        )
