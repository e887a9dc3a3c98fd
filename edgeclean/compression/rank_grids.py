"""The ranks of a layer that are worth a look, and those that are worth a measurement."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from edgeclean.compression.factorisation import (
    AXES,
    Axis,
    ModeRanks,
    Ranks,
    Separable,
    cost_of,
    full_separable_rank,
    is_separated,
    order_of,
)
from edgeclean.compression.settings import Form
from edgeclean.networks.shapes import ConvShape

RANKS_PER_MODE = 32
SMALL_STEPS = (4, 8)  # parts of a channel block of AVX-512; 8 is a whole one of AVX2
NARROW = 64  # channels up to which a rank of 4 is worth a look
STEP = 16  # ranks in between take as long as the next multiple: see `rank_steps`
GROWTH = 1.125
MOST_UNEVEN = 4.0  # shares of the channels that both ranks keep differ by this factor at most
MOST_COST = 0.9  # ranks that save less than a tenth of the work are never chosen


def rank_grid(shape: ConvShape, rank_multiple: int, forms: Collection[Form]) -> list[Ranks]:
    """The ranks to choose from without a latency table, of these forms."""
    modes = mode_grid(shape, rank_multiple) if "tucker" in forms else []
    return [*modes, *(separable_grid(shape, rank_multiple) if "separable" in forms else [])]


def timed_grid(
    shape: ConvShape, rank_multiple: int, forms: Collection[Form], timed: Iterable[Ranks]
) -> list[Ranks]:
    """The ranks to choose from of those that a latency table holds, of these forms."""
    return sorted(
        (one for one in timed if form_of(one) in forms and is_allowed(one, shape, rank_multiple)),
        key=order_of,
    )


def smallest_of(grid: Iterable[Ranks]) -> list[Ranks]:
    """Those of a whole grid among which the cheapest is.

    Cost grows with either rank for as long as that mode is factored, so they are the pairs that are
    the least, or the largest, of either mode; and the least separable rank of either order.
    """
    every = list(grid)
    pairs = [one for one in every if not isinstance(one, Separable)]
    outs, ins = ({pair[mode] for pair in pairs} for mode in (0, 1))
    least = {
        one.first: one
        for one in sorted((one for one in every if isinstance(one, Separable)), key=order_of)[::-1]
    }
    corners = (
        (out, into)
        for out, into in pairs
        if out in (min(outs), max(outs)) and into in (min(ins), max(ins))
    )
    return [*corners, *least.values()]


def form_of(ranks: Ranks) -> Form:
    """The form that ranks are of."""
    return "separable" if isinstance(ranks, Separable) else "tucker"


def mode_grid(shape: ConvShape, rank_multiple: int) -> list[ModeRanks]:
    """All pairs of `allowed_ranks`."""
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


def separable_grid(shape: ConvShape, rank_multiple: int) -> list[Separable]:
    """The ranks that may save work in both orders; none where a side has no taps."""
    found: list[Separable] = []
    for first in AXES if is_separated(shape) else ():
        most = useful_rank(shape, first)
        ranks = allowed_ranks(most, most, rank_multiple) if most else []
        found += [
            one
            for one in (Separable(first=first, rank=rank) for rank in ranks)
            if is_allowed(one, shape, rank_multiple)
        ]
    return found


def useful_rank(shape: ConvShape, first: Axis) -> int:
    """The highest rank of a separable kernel that has no more weights than the whole one."""
    each, _ = cost_of([shape], Separable(first=first, rank=1))
    return min(full_separable_rank(shape, first), shape.params // each)


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
    """Return whether the ranks are multiples of the preferred number, or whole."""
    if isinstance(ranks, Separable):
        most = useful_rank(shape, ranks.first) if is_separated(shape) else 0
        return ranks.rank <= most and ranks.rank % _multiple_for(most, rank_multiple) == 0
    channels = (min(shape.channels),) * 2 if shape.pointwise else shape.channels
    return all(
        rank % _multiple_for(most, rank_multiple) == 0 or rank == most
        for rank, most in zip(ranks, channels, strict=True)
    )


def measured_grid(shape: ConvShape, forms: Collection[Form] = ()) -> list[Ranks]:
    """The ranks to measure: all steps that save a tenth of parameters and MACs.

    Args:
        shape: of the layer.
        forms: separable ones are among them where that form is; those of the modes always are.
    """
    out, channels_in = shape.channels
    every: list[Ranks] = []
    if shape.pointwise:
        every += [(rank, rank) for rank in rank_steps(min(out, channels_in))]
    else:
        every += [
            (rank_out, rank_in)
            for rank_out in rank_steps(out)
            for rank_in in rank_steps(channels_in)
            if _is_even(rank_out / out, rank_in / channels_in)
        ]
    if "separable" in forms and is_separated(shape):
        every += [
            Separable(first=first, rank=rank)
            for first in AXES
            for rank in rank_steps(full_separable_rank(shape, first))
        ]
    dense = cost_of([shape], None)
    return [
        ranks
        for ranks in every
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
