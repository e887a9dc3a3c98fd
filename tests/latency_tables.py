"""Made-up latency tables: what a form takes follows from its work, and some forms are slow."""

from __future__ import annotations

from math import prod

from edgeclean.ranks.form_grid import chain, form_grid
from edgeclean.ranks.latency_table import LatencyTable, NetworkTime, TimedForm, layers_digest
from edgeclean.ranks.signatures import Signature, layer_signatures
from edgeclean.states import Network

CALL_MS = 0.004  # each convolution of a form has its own cost, so that small ones gain nothing
MS_PER_MAC = 2e-7


def made_up_ms(signature: Signature, ranks: tuple[int, int] | None) -> float:
    macs = sum(
        conv.channels_out * conv.channels_in * prod(conv.kernel) * prod(conv.image_out())
        for conv in chain(signature, ranks)
    )
    odd = 1.7 if ranks is not None and (ranks[0] + ranks[1]) % 3 == 0 else 1.0
    return round(odd * macs * MS_PER_MAC + CALL_MS * len(chain(signature, ranks)), 6)


def made_up_table(of: Network, /, **changes: object) -> LatencyTable:
    signatures = layer_signatures(of.module, of.spec.input_shape)
    blocks = {
        one: tuple(
            TimedForm(ranks=ranks, ms=made_up_ms(one, ranks), spread_ms=0.001)
            for ranks in [None, *form_grid(one)]
        )
        for one in set(signatures.values())
    }
    whole = sum(made_up_ms(one, None) for one in signatures.values())
    fields = {
        "device": "made up",
        "runtime": "none 1.0",
        "threads": 1,
        "batch": 1,
        "precision": "fp32",
        "versions": {"none": "1.0"},
        "network": NetworkTime(
            layers_sha256=layers_digest(signatures.values()),
            ms=round(whole + 0.05, 6),
            spread_ms=0.0,
        ),
        "blocks": blocks,
    }
    return LatencyTable(**{**fields, **changes})
