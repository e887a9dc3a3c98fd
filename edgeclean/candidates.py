"""What every layer could become: ranks, with their exact cost and the energy that they discard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.blocks import Factors, block_factors, factorize
from edgeclean.sites import Site

Measure = Literal["macs", "params"]

_VALUES_PER_MODE = 32
_MOST_CANDIDATES = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One form of one layer.

    Attributes:
        ranks: (r_out, r_in); a rank equal to its channel count means that this mode is not
            factored. None is the one convolution that the layer is.
        params: of the layer in this form, its bias included.
        macs: of the layer in this form, for one image.
        energy: squared Frobenius distance from the layer's kernel, over the kernel's square.
    """

    ranks: tuple[int, int] | None
    params: int
    macs: int
    energy: float

    def cost(self, measure: Measure) -> int:
        """Parameters or multiply-accumulates."""
        return self.params if measure == "params" else self.macs


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A site that may be factored, with its factors."""

    site: Site
    conv: nn.Conv2d
    factors: Factors

    @property
    def channels(self) -> tuple[int, int]:
        """(out, in)."""
        return self.conv.out_channels, self.conv.in_channels

    def whole(self) -> Candidate:
        """The layer as one convolution."""
        weights = self.conv.weight.numel()
        return Candidate(
            ranks=None,
            params=weights + _bias_params(self.conv),
            macs=weights * self.site.positions_out,
            energy=0.0,
        )

    def candidate(self, ranks: tuple[int, int]) -> Candidate:
        """The layer at these ranks; of a 1x1 convolution both must be equal."""
        (out, channels_in), (rank_out, rank_in) = self.channels, ranks
        height, width = self.conv.kernel_size
        pixels_in, pixels = self.site.positions_in, self.site.positions_out
        if self.pointwise:
            reduce, core, expand, pixels_in = rank_in * channels_in, 0, out * rank_out, pixels
        else:
            reduce = rank_in * channels_in if rank_in < channels_in else 0
            core = rank_out * rank_in * height * width
            expand = out * rank_out if rank_out < out else 0
        return Candidate(
            ranks=ranks,
            params=reduce + core + expand + _bias_params(self.conv),
            macs=reduce * pixels_in + (core + expand) * pixels,
            energy=float(self.discarded_energy()[rank_out, rank_in]),
        )

    @property
    def pointwise(self) -> bool:
        """Whether the convolution is 1x1, and so has a single rank."""
        return self.conv.kernel_size == (1, 1)

    def factors_at(self, ranks: tuple[int, int]) -> Factors:
        """The leading ranks; a mode that keeps all of its channels is multiplied into the core."""
        return absorb_full_modes(self.factors, ranks, self.channels, pointwise=self.pointwise)

    def discarded_energy(self) -> Float[Tensor, "r_out r_in"]:
        """Entry [i, j]: the fraction of the kernel's energy that ranks (i, j) lose.

        The factors are orthonormal, so what the leading ranks keep is the energy of their part of
        the core, exactly. A rank beyond the core's is as good as the core's.
        """
        squares = self.factors.core.double().square().sum(dim=(2, 3))
        kept = squares.cumsum(0).cumsum(1)
        table = torch.zeros(self.channels[0] + 1, self.channels[1] + 1, dtype=torch.float64)
        rows = torch.arange(1, self.channels[0] + 1).clamp(max=kept.shape[0]) - 1
        columns = torch.arange(1, self.channels[1] + 1).clamp(max=kept.shape[1]) - 1
        table[1:, 1:] = kept.cpu()[rows][:, columns]
        total = float(kept[-1, -1])
        return (1 - table / total).clamp(min=0) if total > 0 else torch.zeros_like(table)


def layer_at(site: Site) -> Layer:
    """The site with its factors: those of its block, or else of its convolution, decomposed now."""
    if isinstance(site.module, nn.Sequential):
        return Layer(site=site, conv=site.conv(), factors=block_factors(site.module))
    conv = site.conv()
    return Layer(site=site, conv=conv, factors=factorize(conv.weight))


def absorb_full_modes(
    factors: Factors, ranks: tuple[int, int], channels: tuple[int, int], *, pointwise: bool
) -> Factors:
    """Truncate, and multiply a factor that has become square into the core."""
    rank_out = min(ranks[0], factors.core.shape[0])
    rank_in = min(ranks[1], factors.core.shape[1])
    cut = factors.truncated(rank_out, rank_in)
    if pointwise:
        return cut
    core, factor_out, factor_in = cut.core, cut.factor_out, cut.factor_in
    if ranks[0] == channels[0] and factor_out is not None:
        core, factor_out = torch.einsum("rihw,or->oihw", core, factor_out), None
    if ranks[1] == channels[1] and factor_in is not None:
        core, factor_in = torch.einsum("orhw,ir->oihw", core, factor_in), None
    return Factors(core=core, factor_out=factor_out, factor_in=factor_in)


def candidates(
    layer: Layer, measure: Measure, rank_multiple: int, least_gain: float
) -> tuple[Candidate, ...]:
    """The layer's forms worth choosing from, cheapest first, the whole convolution last.

    For every cost only the ranks that discard least are kept (r_out and r_in need not be alike),
    and only forms that save at least ``least_gain`` of the layer's cost without raising the other
    measure.
    """
    whole = layer.whole()
    ceiling = whole.cost(measure) * (1 - least_gain)
    forms = [
        form
        for form in map(layer.candidate, _rank_grid(layer, rank_multiple))
        if form.cost(measure) <= ceiling
        and form.params <= whole.params
        and form.macs <= whole.macs
    ]
    forms.sort(key=lambda form: (form.cost(measure), form.energy))
    front: list[Candidate] = []
    for form in forms:
        if not front or form.energy < front[-1].energy:
            front.append(form)
    return (*_thinned(front, measure), whole)


def allowed_ranks(channels: int, full: int, rank_multiple: int) -> list[int]:
    """Multiples of the hardware's preferred number up to the full rank, and all channels.

    For a layer too narrow for even one multiple below its channel count the number is halved until
    there is one, so that such layers are not shut out of the compression.
    """
    while rank_multiple > 1 and rank_multiple >= channels:
        rank_multiple //= 2
    ranks = list(range(rank_multiple, min(full, channels) + 1, rank_multiple))
    if len(ranks) > _VALUES_PER_MODE:
        ranks = [ranks[i * (len(ranks) - 1) // (_VALUES_PER_MODE - 1)] for i in range(_VALUES_PER_MODE)]
    return sorted({*ranks, channels})


def _rank_grid(layer: Layer, rank_multiple: int) -> list[tuple[int, int]]:
    out, channels_in = layer.channels
    full_out, full_in = layer.factors.core.shape[0], layer.factors.core.shape[1]
    if layer.pointwise:
        width = min(out, channels_in)
        return [(r, r) for r in allowed_ranks(width, full_out, rank_multiple) if r <= full_out]
    return [
        (rank_out, rank_in)
        for rank_out in allowed_ranks(out, full_out, rank_multiple)
        for rank_in in allowed_ranks(channels_in, full_in, rank_multiple)
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
