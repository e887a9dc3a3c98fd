"""The network that ranks are chosen for: fitted layer after layer, heard at its outputs."""

import copy
import itertools

import pytest
import torch
from factor_networks import plain, some_images

from edgeclean.compression.candidates import CandidateLimits, OutputEffect, list_candidates
from edgeclean.compression.planned_network import planned_network


def planned_of(network, images):
    return planned_network(network, (), images, most_images=96, ridge=0.01)


def with_factors(module, factors):
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for name, one in factors.items():
            changed.get_parameter(f"{name}.weight").copy_(one.kernel())
    return changed


def test_fitting_in_order_does_not_let_errors_pile_up():
    planned = planned_of(plain(), some_images(64))
    ranks = {"stem": (8, 3), "down": (16, 8), "point": (12, 12), "late": (12, 12)}
    apart = {name: planned.fit(name).at(pair) for name, pair in ranks.items()}
    before = copy.deepcopy(planned.module.state_dict())
    errors = []
    with torch.no_grad():
        outputs = planned.module(planned.batch)
        for factors in (apart, planned.fit_in_order(ranks, {}).factors):
            gap = with_factors(planned.module, factors)(planned.batch) - outputs
            errors.append(float(gap.square().sum()))
    assert errors[1] < 0.9 * errors[0]
    for key, tensor in planned.module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_the_effect_is_the_outputs_relative_change():
    planned = planned_of(plain(), some_images())
    effect, fit = OutputEffect(planned.module, planned.batch), planned.fit("late")
    candidates = list_candidates(
        planned.layers["late"],
        fit,
        limits=CandidateLimits(cost="macs", rank_multiple=16, least_gain=0.1),
    )
    effects = effect.effects("late", fit, candidates)
    with torch.no_grad():
        outputs = planned.module(planned.batch)
        changed = with_factors(planned.module, {"late": fit.at(candidates[0].ranks)})
        gap = changed(planned.batch) - outputs
    expected = gap.var(dim=1).sum() / outputs.var(dim=1).sum()
    assert effects[0] == pytest.approx(float(expected), rel=1e-3)
    assert effects[-1] == 0.0
    assert all(dear <= cheap for cheap, dear in itertools.pairwise(effects))
