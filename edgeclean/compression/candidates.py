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

from edgeclean.compression.factorisation import Ranks, cost_of
from edgeclean.compression.fit import Fit
from edgeclean.compression.latency_table import LayerTimes, TimeKind
from edgeclean.compression.planned_network import PlannedNetwork, Refit, put_
from edgeclean.compression.settings import Cost, RankSettings
from edgeclean.errors import UsageError
from edgeclean.networks.layers import Layer, require_layers
from edgeclean.networks.shapes import ConvShape
from edgeclean.progress import Progress

_MOST_CANDIDATES = 48
RANKS_PER_MODE = 32
SMALL_STEPS = (4, 8)  # parts of a channel block of AVX-512; 8 is a whole one of AVX2
NARROW = 64  # channels up to which a rank of 4 is worth a look
STEP = 16  # ranks in between take as long as the next multiple: see `rank_steps`
GROWTH = 1.125
MOST_UNEVEN = 4.0  # shares of the channels that both ranks keep differ by this factor at most
MOST_COST = 0.9  # ranks that save less than a tenth of the work are never chosen
NO_TIME: tuple[int, TimeKind] = (0, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One layer at certain ranks.

    Attributes:
        ranks: (r_out, r_in); a rank equal to its channel count means that this mode is not
            factored. None is the one convolution that the layer is.
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
    """

    cost: Cost
    rank_multiple: int
    least_gain: float


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
    shape, multiple = layer.shapes[0], limits.rank_multiple
    grid = rank_grid(shape, multiple) if times is None else _timed_grid(shape, multiple, times)
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
    """The first of `list_candidates`, without a look at the weights; its loss is not known.

    Cost grows with either rank for as long as that mode is factored, so of every grid without times
    only the least ranks and those of a whole mode need to be looked at.
    """
    dense = dense_candidate(layer, times)
    shape, multiple = layer.shapes[0], limits.rank_multiple
    if times is None:
        grid = _corners(rank_grid(shape, multiple))
    else:
        grid = _timed_grid(shape, multiple, times)
    every = (_candidate(layer, ranks, 0.0, times) for ranks in grid)
    found = (one for one in every if _is_worthwhile(one, dense, limits))
    return min(found, key=lambda one: one.cost(limits.cost), default=dense)


def rank_grid(shape: ConvShape, rank_multiple: int) -> list[Ranks]:
    """The ranks to choose from without a latency table: all pairs of `allowed_ranks`."""
    taps = shape.kernel[0] * shape.kernel[1]
    if shape.pointwise:
        least = min(shape.channels)
        return [(rank, rank) for rank in allowed_ranks(least, least, rank_multiple)]
    out, channels_in = shape.channels
    return [
        (rank_out, rank_in)
        for rank_out in allowed_ranks(out, channels_in * taps, rank_multiple)
        for rank_in in allowed_ranks(channels_in, out * taps, rank_multiple)
        if (rank_out, rank_in) != (out, channels_in)
    ]


def allowed_ranks(channels: int, full: int, rank_multiple: int) -> list[int]:
    """Multiples of the hardware's preferred number up to the full rank, and all channels.

    For a layer too narrow for even one multiple below its channel count the number is halved until
    there is one, so that such layers are not shut out of the compression.
    """
    rank_multiple = _multiple_for(channels, rank_multiple)
    ranks = list(range(rank_multiple, min(full, channels) + 1, rank_multiple))
    if len(ranks) > RANKS_PER_MODE:
        last = RANKS_PER_MODE - 1
        ranks = [ranks[i * (len(ranks) - 1) // last] for i in range(RANKS_PER_MODE)]
    return sorted({*ranks, channels})


def is_allowed(ranks: Ranks, shape: ConvShape, rank_multiple: int) -> bool:
    """Return whether both ranks are multiples of the preferred number, or whole."""
    channels = (min(shape.channels),) * 2 if shape.pointwise else shape.channels
    return all(
        rank % _multiple_for(most, rank_multiple) == 0 or rank == most
        for rank, most in zip(ranks, channels, strict=True)
    )


def measured_grid(shape: ConvShape) -> list[Ranks]:
    """The ranks to measure: all steps of both modes that save a tenth of parameters and MACs."""
    out, channels_in = shape.channels
    if shape.pointwise:
        pairs = [(rank, rank) for rank in rank_steps(min(out, channels_in))]
    else:
        pairs = [
            (rank_out, rank_in)
            for rank_out in rank_steps(out)
            for rank_in in rank_steps(channels_in)
            if _is_even(rank_out / out, rank_in / channels_in)
        ]
    dense = cost_of([shape], None)
    return [
        ranks
        for ranks in pairs
        if all(
            cost <= MOST_COST * most
            for cost, most in zip(cost_of([shape], ranks), dense, strict=True)
        )
    ]


def rank_steps(channels: int) -> list[int]:
    """Ranks that kernels like, an eighth or 16 apart from each other, and all channels.

    ONNX Runtime lays channels out in blocks of 16 floats on AVX-512 (8 on AVX2) and pads the last
    block, so a rank costs what its next multiple does; one that is no multiple of 4 even leaves
    that layout. Tensor cores want multiples of 8 in FP16.

    Source: onnxruntime, nchwc_transformer.cc (TransformConv) and mlas's snchwc.cpp; measured with
    ONNX Runtime 1.32 on AVX-512: 256 channels at 14x14, ranks 20, 24 and 32 all take 0.16 ms.
    """
    ranks = [step for step in SMALL_STEPS if step > SMALL_STEPS[0] or channels <= NARROW]
    if channels <= SMALL_STEPS[0]:
        ranks = [max(1, channels // 2)]
    rank = STEP
    while rank < channels:
        ranks.append(rank)
        rank = max(rank + STEP, round(rank * GROWTH / STEP) * STEP)
    return [*(rank for rank in ranks if rank < channels), channels]


def _timed_grid(shape: ConvShape, multiple: int, times: LayerTimes) -> list[Ranks]:
    return sorted(ranks for ranks in times.ns if is_allowed(ranks, shape, multiple))


def _corners(grid: list[Ranks]) -> list[Ranks]:
    """The pairs of a grid that are the least, or the largest, of either mode."""
    outs, ins = ({pair[mode] for pair in grid} for mode in (0, 1))
    return [
        (out, into)
        for out, into in grid
        if out in (min(outs), max(outs)) and into in (min(ins), max(ins))
    ]


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


def _multiple_for(channels: int, rank_multiple: int) -> int:
    """Halve the multiple until one lies below the layer's channel count."""
    while rank_multiple > 1 and rank_multiple >= channels:
        rank_multiple //= 2
    return rank_multiple


def _is_even(share_out: float, share_in: float) -> bool:
    """A mode that stays whole may stand beside any rank: it costs no factor."""
    if 1.0 in (share_out, share_in):
        return True
    return 1 / MOST_UNEVEN <= share_out / share_in <= MOST_UNEVEN


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
            forced = forced_candidate(layer, settings.overrides[name], known)
            loss = fit.loss(settings.overrides[name])
            listed: tuple[Candidate, ...] = (replace(forced, loss=loss),)
        elif times is not None and known is None:
            found[name] = LayerCandidates(
                candidates=(dense,), effects=(0.0,), dense=dense, timed=False
            )
            continue
        elif "tucker" not in settings.forms:
            listed = (dense,)
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
            return self._effect()
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
            return self._effect()
        finally:
            with torch.no_grad():
                weight.copy_(original)

    def _effect(self) -> float:
        change = self._run() - self._outputs
        return float(change.square().sum()) / self._square if self._square > 0 else 0.0

    def _run(self) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = self._module(self._images).flatten(1).double()
        return outputs - outputs.mean(dim=1, keepdim=True) if outputs.shape[1] > 1 else outputs


def output_effect(network: PlannedNetwork, settings: RankSettings) -> OutputEffect | None:
    """What weighs candidates by the outputs; None where losses do, or there are no images."""
    if network.batch is None or settings.sensitivity != "output":
        return None
    return OutputEffect(network.module, network.batch)


def forced_candidate(layer: Layer, ranks: Ranks, times: LayerTimes | None = None) -> Candidate:
    """The candidate that an override asks for; its loss is not known.

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
    asked, dense = _candidate(layer, ranks, 0.0, times), dense_candidate(layer, times)
    if asked.params >= dense.params or asked.macs > dense.macs:
        raise UsageError(
            f"ranks {list(ranks)} make {layer.name} no smaller ({asked.params} parameters and "
            f"{asked.macs} MACs against {dense.params} and {dense.macs}); lower them, or keep it"
        )
    return asked
