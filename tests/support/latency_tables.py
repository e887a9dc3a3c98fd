"""Made-up latency tables: what a form takes follows from its work, and some forms are slow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edgeclean.compression.factorisation import Ranks, part_shapes, ranks_as_json
from edgeclean.compression.latency_table import LatencyTable, NetworkTime, TimedRanks, layers_digest
from edgeclean.compression.planned_network import planned_network
from edgeclean.compression.rank_grids import measured_grid
from edgeclean.compression.settings import Form, RankSettings
from edgeclean.compression.unit_candidates import cut_shapes
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.networks.shapes import ConvShape
from edgeclean.networks.state import Network

CALL_MS = 0.004  # each convolution of a form has its own cost, so that small ones gain nothing
MS_PER_MAC = 2e-7


def made_up_ms(shape: ConvShape, ranks: Ranks | None) -> float:
    macs = sum(part.macs for part in part_shapes(shape, ranks))
    numbers = [] if ranks is None else [one for one in ranks_as_json(ranks) if isinstance(one, int)]
    odd = 1.7 if numbers and sum(numbers) % 3 == 0 else 1.0
    return round(odd * macs * MS_PER_MAC + CALL_MS * len(part_shapes(shape, ranks)), 6)


def table_with_cuts(of: Network, /, **changes: object) -> LatencyTable:
    """The same, and beside it what layers with fewer channels take."""
    planned = planned_network(of, (), None, most_images=1, ridge=None, hidden=True)
    smaller = {one for some in cut_shapes(planned, RankSettings()).values() for one in some}
    cuts = {
        one: (TimedRanks(ranks=None, ms=made_up_ms(one, None), spread_ms=0.001),) for one in smaller
    }
    whole = made_up_table(of, **changes)
    return replace(whole, blocks={**cuts, **whole.blocks})


def made_up_table(
    of: Network, /, *, forms: Collection[Form] = (), **changes: object
) -> LatencyTable:
    shapes = conv_shapes(trace_layers(of.module, of.spec.input_shape))
    blocks = {
        one: tuple(
            TimedRanks(ranks=ranks, ms=made_up_ms(one, ranks), spread_ms=0.001)
            for ranks in [None, *measured_grid(one, forms)]
        )
        for one in set(shapes.values())
    }
    whole = sum(made_up_ms(one, None) for one in shapes.values())
    fields = {
        "device": "made up",
        "runtime": "none 1.0",
        "threads": 1,
        "batch": 1,
        "precision": "fp32",
        "versions": {"none": "1.0"},
        "network": NetworkTime(
            layers_sha256=layers_digest(shapes.values()),
            ms=round(whole + 0.05, 6),
            spread_ms=0.0,
        ),
        "blocks": blocks,
    }
    return LatencyTable(**{**fields, **changes})
