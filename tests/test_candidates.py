"""The forms that a layer may take: what each costs and loses, and which ranks are allowed."""

import itertools

import pytest
from factor_networks import plain

from edgeclean.cost import count_macs, count_params
from edgeclean.factors.blocks import factorize
from edgeclean.factors.decompose import DecomposeSettings, decompose
from edgeclean.factors.fits import WeightFit
from edgeclean.factors.sites import find_sites
from edgeclean.ranks.candidates import FormLimits, allowed_ranks, list_candidates, whole
from edgeclean.ranks.choose import RankSettings, choose_ranks
from edgeclean.ranks.truncate import TruncateSettings, truncate


@pytest.mark.parametrize("name", ["stem", "down", "point", "late"])
def test_candidates_cost_what_their_blocks_cost(name):
    network = plain()
    site = next(site for site in find_sites(network) if site.name == name)
    conv = site.conv()
    fit = WeightFit(factorize(conv.weight), conv.weight.shape[:2])
    base = count_params(network.module), count_macs(network.module, (3, 16, 16))
    dense = whole(site, conv)
    decomposed = decompose(network, DecomposeSettings())
    for form in list_candidates(
        site, conv, fit, limits=FormLimits(cost="macs", rank_multiple=7, least_gain=0.0)
    ):
        if form.ranks is None:
            continue
        others = tuple(s.name for s in find_sites(network) if s.name != name and not s.reason)
        plan = choose_ranks(
            decomposed,
            RankSettings(ratio=1.0, overrides={name: form.ranks}, keep=others, least_gain=0.0),
        )
        module = truncate(decomposed, plan, TruncateSettings()).module
        assert count_params(module) == base[0] - dense.params + form.params
        assert count_macs(module, (3, 16, 16)) == base[1] - dense.macs + form.macs
        assert form.params <= dense.params
        assert form.macs <= dense.macs


def test_candidates_get_dearer_and_lose_less():
    network = plain()
    site = next(site for site in find_sites(network) if site.name == "late")
    fit = WeightFit(factorize(site.conv().weight), (48, 64))
    forms = list_candidates(
        site, site.conv(), fit, limits=FormLimits(cost="params", rank_multiple=1, least_gain=0.1)
    )
    assert len(forms) <= 49
    for cheap, dear in itertools.pairwise(forms):
        assert cheap.params < dear.params
        assert cheap.loss > dear.loss
    assert forms[-1].ranks is None
    assert all(form.params <= 0.9 * forms[-1].params for form in forms[:-1])
    assert any(form.ranks[0] != form.ranks[1] for form in forms[:-1])


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
