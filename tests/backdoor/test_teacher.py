"""After the first round the infected network teaches every class but the suspected ones."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from tiny_networks import tiny_network
from torch import nn

from edgeclean.backdoor.bank import build_bank
from edgeclean.backdoor.gradient import ELSEWHERE, logits_of
from edgeclean.backdoor.unlearn import (
    UnlearningInputs,
    UnlearnSettings,
    overruled,
    unlearn,
)
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.features import (
    Features,
    channel_moments,
    feature_distance,
    feature_scales,
    shared_taps,
)
from edgeclean.networks.folding import inference_copy
from edgeclean.networks.pixels import pixel_network

PIXELS = procedural_images(12, (3, 8, 8), torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def infected():
    return inference_copy(pixel_network(tiny_network(seed=0)).eval(), PIXELS)


@pytest.fixture(scope="module")
def student():
    return pixel_network(tiny_network(seed=1)).eval()


@pytest.fixture
def inputs(infected):
    bank = build_bank((3, 8, 8), torch.Generator().manual_seed(2))
    return UnlearningInputs(
        source=infected, teacher=infected, synthetic=PIXELS[:8], procedural=PIXELS[8:], bank=bank
    )


@torch.no_grad()
def answers(function):
    return logits_of(function, PIXELS[None])[0]


@pytest.mark.parametrize("suspected", [(2,), (3, 0)])
def test_the_student_speaks_for_the_suspected_classes_alone(inputs, infected, student, suspected):
    mended = answers(overruled(inputs, infected, student, suspected).teacher)
    of_student, of_infected = answers(inference_copy(student, PIXELS[:8])), answers(infected)
    for column in range(mended.shape[1]):
        source, other = of_student, of_infected
        if column not in suspected:
            source, other = other, source
        assert torch.equal(mended[:, column], source[:, column])
        assert not torch.allclose(mended[:, column], other[:, column], atol=1e-3)


def test_the_student_is_copied_and_the_images_stay(inputs, infected, student):
    later = overruled(inputs, infected, student, (1,))
    before = answers(later.teacher)
    trained = pixel_network(tiny_network(seed=1)).eval()
    again = overruled(inputs, infected, trained, (1,))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.zero_()
    assert torch.equal(answers(again.teacher), before)
    assert later.synthetic is inputs.synthetic
    assert later.procedural is inputs.procedural
    assert inputs.teacher is infected


def test_an_all_to_all_suspicion_names_no_class_and_changes_no_teacher(inputs, infected, student):
    assert overruled(inputs, infected, student, (ELSEWHERE,)) is inputs
    mixed = answers(overruled(inputs, infected, student, (ELSEWHERE, 1)).teacher)
    assert torch.equal(mixed[:, 0], answers(infected)[:, 0])
    assert torch.equal(mixed[:, 1], answers(inference_copy(student, inputs.synthetic))[:, 1])


def test_features_are_kept_by_their_weight(inputs, infected, student):
    def apart(weight):
        settings = UnlearnSettings(steps=20, batch_size=12, feature_weight=weight, bank_share=1.0)
        generator = torch.Generator().manual_seed(0)
        learnt = unlearn(student, inputs, [], settings, generator, lambda _done: None)
        taps = shared_taps(learnt, student)
        with torch.no_grad(), Features(learnt, taps) as own, Features(infected, taps) as given:
            for function in (learnt, infected):
                logits_of(function, PIXELS[None])
            kept, wanted = own.take(), given.take()
            scales = feature_scales([channel_moments(wanted)])
            return float(feature_distance(kept, wanted, scales, len(PIXELS)))

    assert apart(1.0) < 0.8 * apart(0.0)


def with_a_dead_channel(student, times):
    """The same network, whose last BatchNorm multiplies next to no weight of one channel."""
    shared = copy.deepcopy(student)
    *_, (conv, norm) = (
        pair
        for pair in pairwise(shared.modules())
        if isinstance(pair[0], nn.Conv2d) and isinstance(pair[1], nn.BatchNorm2d)
    )
    with torch.no_grad():
        factor = times * (norm.running_var[0] + norm.eps).sqrt() / norm.weight[0].abs()
        conv.weight[0] /= factor
        norm.running_mean[0] /= factor
        if conv.bias is not None:
            conv.bias[0] /= factor
        norm.running_var[0] = 1 / times**2 - norm.eps
        norm.weight[0] = norm.weight[0].sign()
    return shared


def test_a_channel_that_died_learns_no_faster_than_others(inputs, student):
    """One that died in training has next to no weight, and a BatchNorm that multiplies it."""
    before = answers(student)
    settings = UnlearnSettings(steps=10, batch_size=12, bank_share=1.0)
    learned = []
    for times in (20, 200):
        shared = with_a_dead_channel(student, times)
        assert torch.allclose(answers(shared), before, rtol=1e-3, atol=1e-3)
        generator = torch.Generator().manual_seed(0)
        learned.append(
            answers(unlearn(shared, inputs, [], settings, generator, lambda _done: None))
        )
    moved = (learned[0] - before).abs().max()
    assert moved > 0.01
    assert (learned[1] - learned[0]).abs().max() < 0.05 * moved
