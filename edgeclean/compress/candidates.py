"""What a layer could become: ranks, with their exact cost and what they lose."""

from __future__ import annotations

from dataclasses import dataclass

from edgeclean.compress.factorisation import Ranks, cost_of
from edgeclean.compress.fit import Fit
from edgeclean.compress.latency_table import LayerTimes, TimeKind
from edgeclean.compress.rank_grid import is_allowed, rank_grid
from edgeclean.compress.settings import Cost
from edgeclean.networks.layers import Layer

_MOST_CANDIDATES = 48
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
        rank_multiple: see `rank_grid.allowed_ranks`.
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
