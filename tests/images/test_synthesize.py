"""Synthetic images: in range, balanced, seeded, and closer to the statistics than their start."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_networks import tiny_network
from torch import nn
from torch.nn import functional

from edgeclean.errors import UsageError
from edgeclean.images.batchnorm import StatisticsDistance, reestimate_batchnorm_
from edgeclean.images.procedural import procedural_images
from edgeclean.images.synthesize import (
    SynthesizeSettings,
    balanced_labels,
    soft_labels,
    synthesize,
)
from edgeclean.networks.pixels import pixel_network

SETTINGS = SynthesizeSettings(count=20, steps=30, batch_size=16)


def distance(network, pixels):
    module = pixel_network(network)
    with StatisticsDistance(module) as statistics, torch.no_grad():
        module(pixels)
        return float(statistics.distance())


def misses(network, pixels):
    """How far means and deviations are from what the first and the last BatchNorm remember.

    Computed from the layers' inputs alone: the tool's own distance is what is on trial.
    """
    module = pixel_network(network)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
        for layer in layers
    ]
    with torch.no_grad():
        module(pixels)
    for handle in handles:
        handle.remove()
    found = []
    for layer, inputs in ((layers[0], seen[0]), (layers[-1], seen[-1])):
        deviation = layer.running_var.sqrt()
        means = (inputs.mean((0, 2, 3)) - layer.running_mean) / deviation
        spreads = inputs.std((0, 2, 3), correction=0) / deviation - 1
        found += [float(means.square().mean()), float(spreads.square().mean())]
    return found


def test_images_are_pixels_balanced_and_repeatable():
    network = tiny_network()
    first = synthesize(network, SETTINGS, seed=3)
    again = synthesize(network, SETTINGS, seed=3)
    other = synthesize(network, SETTINGS, seed=4)
    assert len(first) == 20
    assert first.pixels.min() >= 0
    assert first.pixels.max() <= 1
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)
    assert torch.bincount(first.labels).tolist() == [4, 4, 4, 4, 4]


def test_the_statistics_alone_pull_images_towards_them():
    network = tiny_network()
    start = procedural_images(20, (3, 8, 8), torch.Generator().manual_seed(3))
    # It remembers dark, flat images: far from the start, and within reach of pixels.
    reestimate_batchnorm_(pixel_network(network), 0.2 + 0.2 * start.roll(3, 0))
    only_statistics = replace(SETTINGS, class_weight=0.0, smoothness_weight=0.0)
    made = synthesize(network, only_statistics, seed=3)
    assert distance(network, made.pixels) < 0.3 * distance(network, start)
    for after, before in zip(misses(network, made.pixels), misses(network, start), strict=True):
        assert after < 0.5 * before


def test_each_image_starts_as_a_procedural_one():
    one_step = replace(SETTINGS, count=16, steps=1, learning_rate=1e-4)
    made = synthesize(tiny_network(), one_step, seed=3)
    start = procedural_images(16, (3, 8, 8), torch.Generator().manual_seed(3))
    torch.testing.assert_close(made.pixels, start, atol=0.03, rtol=0)


def test_the_class_loss_is_taken_through_the_classifier_that_is_given():
    network, judge = tiny_network(seed=0), tiny_network(seed=1)
    settings = replace(SETTINGS, class_weight=10.0, steps=60)

    def odds(images):
        with torch.no_grad():
            logits = pixel_network(judge)(images.pixels)
        return float(nn.functional.cross_entropy(logits, images.labels))

    alone = synthesize(network, settings, seed=3)
    judged = synthesize(network, settings, seed=3, classifier=judge)
    assert odds(judged) < 0.9 * odds(alone)


def test_the_network_itself_is_not_changed():
    network = tiny_network()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    synthesize(network, SETTINGS, seed=0)
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.requires_grad for parameter in network.module.parameters())


def test_a_network_without_batchnorm_says_so():
    plain = tiny_network(nn.Identity())
    plain.module[1] = nn.Identity()
    images = synthesize(plain, SETTINGS, seed=0)
    assert images.origin == "class inversion of procedural images"
    assert synthesize(tiny_network(), SETTINGS, seed=0).origin == "batch-norm inversion"


def test_batchnorm_layers_that_never_run_are_left_alone():
    """An auxiliary head helps training only."""
    plain = tiny_network(nn.Identity())
    plain.module[1] = nn.Identity()
    plain.module.forward = nn.Sequential(*plain.module).forward
    plain.module.head = nn.BatchNorm2d(3)
    assert synthesize(plain, SETTINGS, seed=0).origin == "class inversion of procedural images"
    network = tiny_network()
    wanted = synthesize(network, SETTINGS, seed=0)
    network.module.forward = nn.Sequential(*network.module).forward
    network.module.head = nn.BatchNorm2d(3)
    made = synthesize(network, SETTINGS, seed=0)
    assert made.origin == "batch-norm inversion"
    assert torch.equal(made.pixels, wanted.pixels)


def test_soft_labels_are_distributions_led_by_the_first_class():
    first = torch.arange(200) % 7
    targets = soft_labels(first, 7, torch.Generator().manual_seed(0))
    torch.testing.assert_close(targets.sum(1), torch.ones(200))
    assert torch.equal(targets.argmax(1), first)
    assert 0.3 < float((targets.amax(1) > 0.9).float().mean()) < 0.8


def test_soft_labels_are_those_of_one_hot_vectors():
    for classes in (2, 7, 100):  # the two classes of an image are often one and the same of few
        first = torch.arange(50) % classes
        generator = torch.Generator().manual_seed(1)
        second = torch.randint(classes, (50,), generator=generator)
        pure = torch.rand(50, generator=generator) < 0.5
        share = 0.5 + 0.5 * torch.rand(50, generator=generator)
        share[pure] = 1
        wanted = 0.95 * (
            functional.one_hot(first, classes) * share[:, None]
            + functional.one_hot(second, classes) * (1 - share[:, None])
        )
        got = soft_labels(first, classes, torch.Generator().manual_seed(1))
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted + 0.05 / classes)


def test_fewer_images_are_made_at_once_where_there_are_many_classes(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "edgeclean.images.synthesize.answers_at_once", lambda classes: asked.append(classes) or 3
    )
    shown = []
    network = tiny_network()
    network.module.register_forward_pre_hook(lambda _, given: shown.append(len(given[0])))
    synthesize(network, SynthesizeSettings(count=7, steps=1), seed=0)
    assert asked == [network.spec.classes]
    assert max(shown) == 3


def test_a_senseless_count_is_refused():
    with pytest.raises(UsageError, match="count is 0; it must be a whole number from 1 "):
        SynthesizeSettings(count=0)


def test_procedural_images_differ_and_fill_the_range():
    images = procedural_images(64, (3, 32, 32), torch.Generator().manual_seed(0))
    assert images.shape == (64, 3, 32, 32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert float(images.std(0).mean()) > 0.15  # different images
    assert float((images[:, :, 1:] - images[:, :, :-1]).abs().mean()) < 0.15  # smooth, not noise


@given(count=st.integers(1, 400), classes=st.integers(2, 300), seed=st.integers(0, 99))
def test_labels_are_balanced_over_the_whole_set(count, classes, seed):
    labels = balanced_labels(count, classes, torch.Generator().manual_seed(seed))
    again = balanced_labels(count, classes, torch.Generator().manual_seed(seed))
    counts = torch.bincount(labels, minlength=classes)
    assert len(labels) == count
    assert len(counts) == classes
    assert set(counts.tolist()) <= {count // classes, -(-count // classes)}
    assert torch.equal(labels, again)


def test_few_images_of_many_classes_are_of_any_of_them():
    drawn = [balanced_labels(40, 1000, torch.Generator().manual_seed(seed)) for seed in range(20)]
    seen = torch.cat(drawn)
    assert len(seen.unique()) > 400
    assert int((seen >= 500).sum()) > 300  # of 800


@pytest.mark.parametrize("count", [23, 30])
def test_several_batches_share_the_classes_out(count):
    asked = replace(SETTINGS, count=count, steps=1, batch_size=7)
    made = synthesize(tiny_network(), asked, seed=0)
    assert set(torch.bincount(made.labels, minlength=5).tolist()) <= {count // 5, -(-count // 5)}
    assert set(torch.bincount(made.labels[:10]).tolist()) == {2}  # and so does any part of it
