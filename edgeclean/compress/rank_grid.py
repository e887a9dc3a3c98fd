"""Which ranks of a layer are worth choosing from, and which are worth measuring."""

from __future__ import annotations

from edgeclean.compress.factorisation import Ranks, cost_of
from edgeclean.networks.shapes import ConvShape

RANKS_PER_MODE = 32
SMALL_STEPS = (4, 8)  # parts of a channel block of AVX-512; 8 is a whole one of AVX2
NARROW = 64  # channels up to which a rank of 4 is worth a look
STEP = 16  # ranks in between take as long as the next multiple: see `rank_steps`
GROWTH = 1.125
MOST_UNEVEN = 4.0  # shares of the channels that both ranks keep differ by this factor at most
MOST_COST = 0.9  # ranks that save less than a tenth of the work are never chosen


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
