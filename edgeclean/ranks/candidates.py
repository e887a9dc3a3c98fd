"""What a layer could become: ranks, with their exact cost and what they lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from edgeclean.factors.fits import Fit, Ranks
from edgeclean.factors.sites import Site

Measure = Literal["macs", "params"]

_RANKS_PER_MODE = 32
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
    """

    ranks: Ranks | None
    params: int
    macs: int
    loss: float

    def cost(self, measure: Measure) -> int:
        """Parameters or multiply-accumulates."""
        return self.params if measure == "params" else self.macs


def whole(site: Site, conv: nn.Conv2d) -> Candidate:
    """The layer as one convolution."""
    weights = conv.weight.numel()
    return Candidate(
        ranks=None,
        params=weights + _bias_params(conv),
        macs=weights * site.positions_out,
        loss=0.0,
    )


def candidate(site: Site, conv: nn.Conv2d, fit: Fit, ranks: Ranks) -> Candidate:
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
    return Candidate(
        ranks=ranks,
        params=reduce + core + expand + _bias_params(conv),
        macs=reduce * pixels_in + (core + expand) * pixels,
        loss=fit.loss(ranks),
    )


def list_candidates(
    site: Site,
    conv: nn.Conv2d,
    fit: Fit,
    *,
    measure: Measure,
    rank_multiple: int,
    least_gain: float,
) -> tuple[Candidate, ...]:
    """The layer's forms worth choosing from, cheapest first, the one convolution last.

    Of the ranks of one cost only those that lose least are kept (r_out and r_in need not be
    alike), and only if they save at least ``least_gain`` of the layer's cost without raising the
    other measure.
    """
    dense = whole(site, conv)
    ceiling = dense.cost(measure) * (1 - least_gain)
    forms = [
        form
        for form in (candidate(site, conv, fit, ranks) for ranks in _rank_grid(conv, rank_multiple))
        if form.cost(measure) <= ceiling and form.params <= dense.params and form.macs <= dense.macs
    ]
    forms.sort(key=lambda form: (form.cost(measure), form.loss))
    front: list[Candidate] = []
    for form in forms:
        if not front or form.loss < front[-1].loss:
            front.append(form)
    return (*_thinned(front, measure), dense)


def allowed_ranks(channels: int, full: int, rank_multiple: int) -> list[int]:
    """Multiples of the hardware's preferred number up to the full rank, and all channels.

    For a layer too narrow for even one multiple below its channel count the number is halved until
    there is one, so that such layers are not shut out of the compression.
    """
    while rank_multiple > 1 and rank_multiple >= channels:
        rank_multiple //= 2
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


def _thinned(front: list[Candidate], measure: Measure) -> list[Candidate]:
    """At most `_MOST_CANDIDATES`, spread evenly over the costs."""
    if len(front) <= _MOST_CANDIDATES:
        return front
    low, high = front[0].cost(measure), front[-1].cost(measure)
    steps = [low + (high - low) * i / (_MOST_CANDIDATES - 1) for i in range(_MOST_CANDIDATES)]
    picked = {max(i for i, f in enumerate(front) if f.cost(measure) <= step) for step in steps}
    return [front[i] for i in sorted(picked)]


def _bias_params(conv: nn.Conv2d) -> int:
    return 0 if conv.bias is None else conv.bias.numel()
