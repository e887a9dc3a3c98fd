"""What a layer could become: ranks worth a look, with their exact cost and what they lose."""

from __future__ import annotations

from dataclasses import dataclass

from edgeclean.compress.factorisation import Ranks, cost_of
from edgeclean.compress.fit import Fit
from edgeclean.compress.latency_table import LayerTimes, TimeKind
from edgeclean.compress.settings import Cost
from edgeclean.networks.layers import Layer
from edgeclean.networks.shapes import ConvShape

_MOST_CANDIDATES = 48
RANKS_PER_MODE = 32
SMALL_STEPS = (4, 8)  # parts of a channel block of AVX-512; 8 is a whole one of AVX2
NARROW = 64  # channels up to which a rank of 4 is worth a look
STEP = 16  # ranks in between take as long as the next multiple: see `rank_steps`
GROWTH = 1.125
MOST_UNEVEN = 4.0  # shares of the channels that both ranks keep differ by this factor at most
MOST_COST = 0.9  # ranks that save less than a tenth of the work are never chosen
_NO_TIME: tuple[int, TimeKind] = (0, "")


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
    """

    ranks: Ranks | None
    params: int
    macs: int
    loss: float = 0.0
    ns: int = 0
    time_kind: TimeKind = ""

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
    multiple, share = limits.rank_multiple, 1 - limits.least_gain
    shape = layer.shapes[0]
    if times is None:
        grid = rank_grid(shape, multiple)
    else:
        grid = sorted(ranks for ranks in times.ns if is_allowed(ranks, shape, multiple))
    found = [
        one
        for one in (candidate(layer, fit, ranks, times) for ranks in grid)
        if one.cost(limits.cost) <= share * dense.cost(limits.cost)
        and one.params <= dense.params
        and one.macs <= dense.macs
        and one.ns <= share * dense.ns
    ]
    found.sort(key=lambda one: (one.cost(limits.cost), one.loss, one.ns))
    front: list[Candidate] = []
    for one in found:
        if all(one.loss < other.loss or one.ns < other.ns for other in front):
            front.append(one)
    return (*(_thinned(front, limits.cost) if times is None else front), dense)


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


def _candidate(
    layer: Layer, ranks: Ranks | None, loss: float, times: LayerTimes | None
) -> Candidate:
    params, macs = cost_of(layer.shapes, ranks)
    bias = [weight for name, weight in layer.module.named_parameters() if name.endswith("bias")]
    ns, time_kind = _NO_TIME if times is None else times.at(ranks)
    return Candidate(
        ranks=ranks,
        params=params + sum(weight.numel() for weight in bias),
        macs=macs,
        loss=loss,
        ns=ns,
        time_kind=time_kind,
    )


def _thinned(front: list[Candidate], measure: Cost) -> list[Candidate]:
    """At most `_MOST_CANDIDATES`, spread evenly over the costs."""
    if len(front) <= _MOST_CANDIDATES:
        return front
    low, high = front[0].cost(measure), front[-1].cost(measure)
    steps = [low + (high - low) * i / (_MOST_CANDIDATES - 1) for i in range(_MOST_CANDIDATES)]
    picked = {max(i for i, one in enumerate(front) if one.cost(measure) <= step) for step in steps}
    return [front[i] for i in sorted(picked)]


def _multiple_for(channels: int, rank_multiple: int) -> int:
    """Halved until there is a multiple below the layer's channel count."""
    while rank_multiple > 1 and rank_multiple >= channels:
        rank_multiple //= 2
    return rank_multiple


def _is_even(share_out: float, share_in: float) -> bool:
    """A mode that stays whole may stand beside any rank: it costs no factor."""
    if 1.0 in (share_out, share_in):
        return True
    return 1 / MOST_UNEVEN <= share_out / share_in <= MOST_UNEVEN
