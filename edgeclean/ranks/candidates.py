"""What a layer could become: ranks, with their exact cost and what they lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from edgeclean.factors.fits import Fit, Ranks
from edgeclean.factors.sites import Site

Measure = Literal["macs", "params"]
Cost = Literal["macs", "params", "latency"]
TimeKind = Literal["", "measured", "estimated"]

_RANKS_PER_MODE = 32
_NO_TIME: tuple[int, TimeKind] = (0, "")
_MOST_CANDIDATES = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One form of one layer.

    Attributes:
        ranks: (r_out, r_in); a rank equal to its channel count means that this mode is not
            factored. None is the one convolution that the layer is.
        params: of the layer in this form, its bias included.
        macs: of the layer in this form, for one image.
        loss: what this form loses, a fraction in [0, 1]; see `fits.Fit`.
        ns: how many nanoseconds it takes by the latency table; 0 without one.
        time_kind: whether the table holds this form; empty without a table.
    """

    ranks: Ranks | None
    params: int
    macs: int
    loss: float
    ns: int = 0
    time_kind: TimeKind = ""

    def cost(self, measure: Cost) -> int:
        """Parameters, multiply-accumulates, or nanoseconds."""
        if measure == "latency":
            return self.ns
        return self.params if measure == "params" else self.macs


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """What a latency table says of one layer.

    Attributes:
        whole_ns: of the one convolution.
        forms_ns: of every form that was measured, by its ranks.
    """

    whole_ns: int
    forms_ns: Mapping[Ranks, int]

    def of(self, ranks: Ranks) -> tuple[int, TimeKind]:
        """Nanoseconds of a form.

        One that was not measured is estimated as long as the quickest measured one that has at
        least its ranks, or as the one convolution where there is none.
        """
        if ranks in self.forms_ns:
            return self.forms_ns[ranks], "measured"
        larger = [
            ns
            for (rank_out, rank_in), ns in self.forms_ns.items()
            if rank_out >= ranks[0] and rank_in >= ranks[1]
        ]
        return min([*larger, self.whole_ns]), "estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormLimits:
    """Which forms of a layer are worth choosing from.

    Attributes:
        cost: that the network's budget is in.
        rank_multiple: see `allowed_ranks`.
        least_gain: the share of the layer's cost that a form must save.
    """

    cost: Cost
    rank_multiple: int
    least_gain: float


def whole(site: Site, conv: nn.Conv2d, times: LayerTimes | None = None) -> Candidate:
    """The layer as one convolution."""
    weights = conv.weight.numel()
    return Candidate(
        ranks=None,
        params=weights + _bias_params(conv),
        macs=weights * site.positions_out,
        loss=0.0,
        ns=0 if times is None else times.whole_ns,
        time_kind="" if times is None else "measured",
    )


def candidate(
    site: Site, conv: nn.Conv2d, fit: Fit, ranks: Ranks, times: LayerTimes | None = None
) -> Candidate:
    """The layer at these ranks; of a 1x1 convolution both must be equal."""
    out, channels_in, height, width = conv.weight.shape
    rank_out, rank_in = ranks
    pixels_in, pixels = site.positions_in, site.positions_out
    if is_pointwise(conv):
        reduce, core, expand, pixels_in = rank_in * channels_in, 0, out * rank_out, pixels
    else:
        reduce = rank_in * channels_in if rank_in < channels_in else 0
        core = rank_out * rank_in * height * width
        expand = out * rank_out if rank_out < out else 0
    ns, time_kind = _NO_TIME if times is None else times.of(ranks)
    return Candidate(
        ranks=ranks,
        params=reduce + core + expand + _bias_params(conv),
        macs=reduce * pixels_in + (core + expand) * pixels,
        loss=fit.loss(ranks),
        ns=ns,
        time_kind=time_kind,
    )


def list_candidates(
    site: Site,
    conv: nn.Conv2d,
    fit: Fit,
    *,
    limits: FormLimits,
    times: LayerTimes | None = None,
) -> tuple[Candidate, ...]:
    """The layer's forms worth choosing from, cheapest first, the one convolution last.

    Of the ranks of one cost only those that lose least are kept (r_out and r_in need not be
    alike), and only if they save at least ``least_gain`` of the layer's cost without raising the
    other measure. With times the forms are those that were measured, each must save as large a
    share of the layer's time as well, and of two the one that is no cheaper, no faster and no more
    faithful is dropped.
    """
    dense = whole(site, conv, times)
    multiple, share = limits.rank_multiple, 1 - limits.least_gain
    grid = _rank_grid(conv, multiple) if times is None else _measured(conv, multiple, times)
    forms = [
        form
        for form in (candidate(site, conv, fit, ranks, times) for ranks in grid)
        if form.cost(limits.cost) <= share * dense.cost(limits.cost)
        and form.params <= dense.params
        and form.macs <= dense.macs
        and form.ns <= share * dense.ns
    ]
    forms.sort(key=lambda form: (form.cost(limits.cost), form.loss, form.ns))
    front: list[Candidate] = []
    for form in forms:
        if all(form.loss < other.loss or form.ns < other.ns for other in front):
            front.append(form)
    return (*(_thinned(front, limits.cost) if times is None else front), dense)


def allowed_ranks(channels: int, full: int, rank_multiple: int) -> list[int]:
    """Multiples of the hardware's preferred number up to the full rank, and all channels.

    For a layer too narrow for even one multiple below its channel count the number is halved until
    there is one, so that such layers are not shut out of the compression.
    """
    rank_multiple = _multiple_for(channels, rank_multiple)
    ranks = list(range(rank_multiple, min(full, channels) + 1, rank_multiple))
    if len(ranks) > _RANKS_PER_MODE:
        last = _RANKS_PER_MODE - 1
        ranks = [ranks[i * (len(ranks) - 1) // last] for i in range(_RANKS_PER_MODE)]
    return sorted({*ranks, channels})


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether the convolution is 1x1, and so has a single rank."""
    return tuple(conv.kernel_size) == (1, 1)


def _rank_grid(conv: nn.Conv2d, rank_multiple: int) -> list[Ranks]:
    out, channels_in, height, width = conv.weight.shape
    taps = height * width
    if is_pointwise(conv):
        least = min(out, channels_in)
        return [(rank, rank) for rank in allowed_ranks(least, least, rank_multiple)]
    return [
        (rank_out, rank_in)
        for rank_out in allowed_ranks(out, channels_in * taps, rank_multiple)
        for rank_in in allowed_ranks(channels_in, out * taps, rank_multiple)
        if (rank_out, rank_in) != (out, channels_in)
    ]


def _measured(conv: nn.Conv2d, rank_multiple: int, times: LayerTimes) -> list[Ranks]:
    """The measured ranks that are multiples of the asked number, or whole."""
    out, channels_in = conv.out_channels, conv.in_channels
    if is_pointwise(conv):
        out = channels_in = min(out, channels_in)
    steps = [_multiple_for(channels, rank_multiple) for channels in (out, channels_in)]
    return sorted(
        ranks
        for ranks in times.forms_ns
        if all(
            rank % step == 0 or rank == channels
            for rank, step, channels in zip(ranks, steps, (out, channels_in), strict=True)
        )
    )


def _multiple_for(channels: int, rank_multiple: int) -> int:
    """Halved until there is a multiple below the layer's channel count."""
    while rank_multiple > 1 and rank_multiple >= channels:
        rank_multiple //= 2
    return rank_multiple


def _thinned(front: list[Candidate], measure: Cost) -> list[Candidate]:
    """At most `_MOST_CANDIDATES`, spread evenly over the costs."""
    if len(front) <= _MOST_CANDIDATES:
        return front
    low, high = front[0].cost(measure), front[-1].cost(measure)
    steps = [low + (high - low) * i / (_MOST_CANDIDATES - 1) for i in range(_MOST_CANDIDATES)]
    picked = {max(i for i, f in enumerate(front) if f.cost(measure) <= step) for step in steps}
    return [front[i] for i in sorted(picked)]


def _bias_params(conv: nn.Conv2d) -> int:
    return 0 if conv.bias is None else conv.bias.numel()
