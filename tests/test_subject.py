"""The network that ranks are chosen for: fitted layer after layer, heard at its outputs."""

import copy
import itertools

import pytest
import torch
from factor_networks import plain, some_images

from edgeclean.ranks import subject as rank_subject
from edgeclean.ranks.candidates import FormLimits, list_candidates
from edgeclean.ranks.sensitivity import OutputEffect


def subject_of(network, images):
    return rank_subject.rank_subject(network, (), images, most_images=96, ridge=0.01)


def with_factors(module, factors):
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for name, one in factors.items():
            changed.get_parameter(f"{name}.weight").copy_(one.kernel())
    return changed


def test_fitting_in_order_does_not_let_errors_pile_up():
    subject = subject_of(plain(), some_images(64))
    ranks = {"stem": (8, 3), "down": (16, 8), "point": (12, 12), "late": (12, 12)}
    apart = {name: subject.fit(name).factors(pair) for name, pair in ranks.items()}
    before = copy.deepcopy(subject.module.state_dict())
    errors = []
    with torch.no_grad():
        outputs = subject.module(subject.batch)
        for factors in (apart, subject.fit_in_order(ranks)):
            gap = with_factors(subject.module, factors)(subject.batch) - outputs
            errors.append(float(gap.square().sum()))
    assert errors[1] < 0.9 * errors[0]
    for key, tensor in subject.module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_the_effect_is_the_outputs_relative_change():
    subject = subject_of(plain(), some_images())
    effect, fit = OutputEffect(subject.module, subject.batch), subject.fit("late")
    conv, site = subject.convs["late"], subject.sites["late"]
    forms = list_candidates(
        site, conv, fit, limits=FormLimits(cost="macs", rank_multiple=16, least_gain=0.1)
    )
    effects = effect.effects("late", fit, forms)
    with torch.no_grad():
        outputs = subject.module(subject.batch)
        changed = with_factors(subject.module, {"late": fit.factors(forms[0].ranks)})
        gap = changed(subject.batch) - outputs
    expected = gap.var(dim=1).sum() / outputs.var(dim=1).sum()
    assert effects[0] == pytest.approx(float(expected), rel=1e-3)
    assert effects[-1] == 0.0
    assert all(dear <= cheap for cheap, dear in itertools.pairwise(effects))
