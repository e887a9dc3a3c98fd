"""Which forms of a layer are worth measuring, and of which convolutions each is made."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from edgeclean.factors.fits import Ranks
from edgeclean.ranks.signatures import Signature

SMALL_STEPS = (4, 8)  # parts of a channel block of AVX-512; 8 is a whole one of AVX2
NARROW = 64  # channels up to which a rank of 4 is worth a look
STEP = 16  # ranks in between take as long as the next multiple: see the docstring below
GROWTH = 1.125
MOST_UNEVEN = 4.0  # shares of the channels that both ranks keep differ by this factor at most
MOST_COST = 0.9  # a form that saves less than a tenth of the work is never chosen


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


def form_grid(signature: Signature) -> list[Ranks]:
    """The ranks to measure: all steps of both modes that save a tenth of parameters and MACs."""
    out, channels_in = signature.channels_out, signature.channels_in
    if signature.pointwise:
        pairs = [(rank, rank) for rank in rank_steps(min(out, channels_in))]
    else:
        pairs = [
            (rank_out, rank_in)
            for rank_out in rank_steps(out)
            for rank_in in rank_steps(channels_in)
            if _is_even(rank_out / out, rank_in / channels_in)
        ]
    whole = (_params(signature), _macs(signature))
    return [
        ranks
        for ranks in pairs
        if all(
            sum(cost(conv) for conv in chain(signature, ranks)) <= MOST_COST * most
            for cost, most in zip((_params, _macs), whole, strict=True)
        )
    ]


def chain(signature: Signature, ranks: Ranks | None) -> tuple[Signature, ...]:
    """The convolutions of a form, in the order they run; see `factors.blocks` for the forms."""
    if ranks is None:
        return (signature,)
    rank_out, rank_in = ranks
    if signature.pointwise:  # stride and padding are the first one's
        return replace(signature, channels_out=rank_in), _mix(
            rank_out, signature.channels_out, signature.image_out()
        )
    core = replace(signature, channels_out=rank_out, channels_in=rank_in)
    before = (
        ()
        if rank_in == signature.channels_in
        else (_mix(signature.channels_in, rank_in, signature.image),)
    )
    after = (
        ()
        if rank_out == signature.channels_out
        else (_mix(rank_out, signature.channels_out, signature.image_out()),)
    )
    return (*before, core, *after)


def _is_even(share_out: float, share_in: float) -> bool:
    """A mode that stays whole may stand beside any rank: it costs no factor."""
    if 1.0 in (share_out, share_in):
        return True
    return 1 / MOST_UNEVEN <= share_out / share_in <= MOST_UNEVEN


def _mix(channels_in: int, channels_out: int, image: tuple[int, int]) -> Signature:
    return Signature(
        channels_out=channels_out,
        channels_in=channels_in,
        kernel=(1, 1),
        stride=(1, 1),
        dilation=(1, 1),
        padding=(0, 0, 0, 0),
        image=image,
    )


def _params(conv: Signature) -> int:
    return conv.channels_out * conv.channels_in * prod(conv.kernel)


def _macs(conv: Signature) -> int:
    return _params(conv) * prod(conv.image_out())
