"""The candidates that a layer may take: what each costs and loses, and which ranks are allowed."""

import itertools

import pytest
from factor_networks import plain

from edgeclean.compression.candidates import (
    CandidateLimits,
    dense_candidate,
    list_candidates,
)
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.fit import WeightFit
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.compression.rank_grids import allowed_ranks
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.compression.tucker import factorise
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.layers import trace_layers


@pytest.mark.parametrize("name", ["stem", "down", "point", "late"])
def test_candidates_cost_what_their_blocks_cost(name):
    network = plain()
    layers = trace_layers(network.module, (3, 16, 16))
    layer = next(one for one in layers if one.name == name)
    conv = layer.module
    fit = WeightFit(factorise(conv.weight), conv.weight.shape[:2])
    base = count_params(network.module), count_macs(network.module, (3, 16, 16))
    dense = dense_candidate(layer)
    decomposed = decompose(network, DecomposeSettings())
    for one in list_candidates(
        layer, fit, limits=CandidateLimits(cost="macs", rank_multiple=7, least_gain=0.0)
    ):
        if one.ranks is None:
            continue
        others = tuple(one.name for one in layers if one.name != name and not one.reason)
        plan = choose_ranks(
            decomposed,
            RankSettings(ratio=1.0, overrides={name: one.ranks}, keep=others, least_gain=0.0),
        )
        module = truncate(decomposed, plan, TruncateSettings()).module
        assert count_params(module) == base[0] - dense.params + one.params
        assert count_macs(module, (3, 16, 16)) == base[1] - dense.macs + one.macs
        assert one.params <= dense.params
        assert one.macs <= dense.macs


def test_candidates_get_dearer_and_lose_less():
    network = plain()
    layers = trace_layers(network.module, (3, 16, 16))
    late = next(one for one in layers if one.name == "late")
    fit = WeightFit(factorise(late.module.weight), (48, 64))
    candidates = list_candidates(
        late, fit, limits=CandidateLimits(cost="params", rank_multiple=1, least_gain=0.1)
    )
    assert len(candidates) <= 49
    for cheap, dear in itertools.pairwise(candidates):
        assert cheap.params < dear.params
        assert cheap.loss > dear.loss
    assert candidates[-1].ranks is None
    assert all(one.params <= 0.9 * candidates[-1].params for one in candidates[:-1])
    assert any(one.ranks[0] != one.ranks[1] for one in candidates[:-1])


@pytest.mark.parametrize(
    ("channels", "full", "multiple", "expected"),
    [
        (16, 16, 8, [8, 16]),
        (16, 16, 16, [8, 16]),
        (16, 16, 32, [8, 16]),
        (64, 27, 8, [8, 16, 24, 64]),
        (64, 64, 32, [32, 64]),
        (20, 20, 8, [8, 16, 20]),
        (3, 3, 8, [2, 3]),
        (1, 1, 8, [1]),
        (5, 5, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_allowed_ranks(channels, full, multiple, expected):
    assert allowed_ranks(channels, full, multiple) == expected


def test_wide_layers_have_few_allowed_ranks():
    ranks = allowed_ranks(2048, 2048, 8)
    assert len(ranks) <= 33
    assert all(rank % 8 == 0 for rank in ranks)
    assert {8, 2048} <= set(ranks)
