"""Training is seeded, resumes exactly, and its augmentation only moves pixels."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from bench_images import noise_images, shade_images, tiny_network

from benchmarks.attacks.base import NoAttack
from benchmarks.attacks.input_aware import InputAware, InputAwareSettings
from benchmarks.attacks.patch import badnets
from benchmarks.metrics import accuracy, attack_success_rate
from benchmarks.networks.training import TrainingSettings, augment, one_cycle, train
from edgeclean.networks.pixels import pixel_network

FAST = TrainingSettings(
    epochs=3, batch=16, peak_rate=0.1, padding=1, flip=True, mixed=False, seed=3
)


def weights_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_one_cycle_rises_to_its_peak_and_falls_to_zero():
    settings = TrainingSettings(peak_rate=0.4, warm_share=0.25)
    rates = [one_cycle(step, 100, settings) for step in range(100)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.4, rel=0.05)
    assert 20 <= top <= 30
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a > b for a, b in pairwise(rates[top + 1 :]))
    assert 0 < rates[-1] < 0.01


def test_augment_without_crop_and_flip_is_the_identity():
    images = noise_images(5)
    assert torch.equal(augment(images.pixels, 0, False, torch.Generator()), images.pixels)


def test_augment_gives_windows_of_the_padded_image_or_of_its_mirror():
    images = noise_images(12, side=5)
    moved = augment(images.pixels, 2, True, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(images.pixels, moved, strict=True):
        padded = torch.nn.functional.pad(before, (2,) * 4)
        windows = {
            (top, left, mirrored): padded[:, top : top + 5, left : left + 5].flip(2)
            if mirrored
            else padded[:, top : top + 5, left : left + 5]
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
        }
        matches = [key for key, window in windows.items() if torch.equal(window, after)]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 6  # each image moves its own way
    assert {mirrored for _, _, mirrored in seen} == {False, True}
    assert any(top != left for top, left, _ in seen)


def test_one_seed_one_network():
    images = shade_images(48)
    first, second, third = (pixel_network(tiny_network()) for _ in range(3))
    train(first, images, NoAttack(classes=4), FAST)
    train(second, images, NoAttack(classes=4), FAST)
    train(
        third,
        images,
        NoAttack(classes=4),
        TrainingSettings(epochs=3, batch=16, peak_rate=0.1, padding=1, mixed=False, seed=4),
    )
    assert same(weights_of(first), weights_of(second))
    assert not same(weights_of(first), weights_of(third))


class Watcher(NoAttack):
    """Keeps the labels of every batch."""

    def __init__(self):
        super().__init__(classes=4)
        self.seen = []

    def batch_loss(self, network, pixels, labels, smoothing, generator):
        self.seen += labels.tolist()
        return super().batch_loss(network, pixels, labels, smoothing, generator)


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own():
    watcher = Watcher()
    train(pixel_network(tiny_network()), shade_images(48), watcher, FAST)
    epochs = [watcher.seen[start : start + 48] for start in (0, 48, 96)]
    assert len(watcher.seen) == 144
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]


class StopHereError(Exception):
    pass


def own_networks():
    """An attack with networks and an optimiser of its own."""
    settings = InputAwareSettings(width=4, mask_epochs=1, batch=16)
    return InputAware(classes=4, rate=0.2, settings=settings)


@pytest.mark.parametrize(
    "make", [lambda: badnets(classes=4, size=(8, 8), rate=0.2), own_networks], ids=["fixed", "own"]
)
def test_resuming_equals_never_stopping(make, tmp_path):
    images = shade_images(48)
    attack, again = make(), make()
    whole = pixel_network(tiny_network())
    train(whole, images, attack, FAST)

    def stop(line):
        if line.startswith("epoch 2/"):
            raise StopHereError

    halted, resumed = pixel_network(tiny_network()), pixel_network(tiny_network(seed=9))
    with pytest.raises(StopHereError):
        train(halted, images, make(), FAST, resume_from=tmp_path, report=stop)
    record = train(resumed, images, again, FAST, resume_from=tmp_path)
    assert same(weights_of(whole), weights_of(resumed))
    for name, network in attack.networks().items():
        assert same(weights_of(network), weights_of(again.networks()[name]))
    assert len(record.epochs) == 3


def test_a_training_with_other_settings_is_not_resumed(tmp_path):
    images = shade_images(32)
    train(pixel_network(tiny_network()), images, NoAttack(classes=4), FAST, resume_from=tmp_path)
    other = TrainingSettings(epochs=4, batch=16, mixed=False)
    with pytest.raises(ValueError, match="holds a training with other settings"):
        train(
            pixel_network(tiny_network()), images, NoAttack(classes=4), other, resume_from=tmp_path
        )


def test_badnets_training_ends_in_a_backdoored_network():
    images = shade_images(200)
    attack = badnets(classes=4, size=(8, 8), rate=0.2)
    network = pixel_network(tiny_network())
    before = copy.deepcopy(images)
    settings = TrainingSettings(
        epochs=12, batch=20, peak_rate=0.2, padding=0, flip=False, mixed=False
    )
    train(network, images, attack, settings)
    test = shade_images(120, seed=5)
    assert not network[1].training
    assert accuracy(network, test).fraction > 0.9
    assert attack_success_rate(network, test, attack.stamp, attack.relabel).fraction > 0.9
    assert torch.equal(images.pixels, before.pixels)  # the attack poisons a copy
    clean = pixel_network(tiny_network())
    train(clean, images, NoAttack(classes=4), settings)
    assert attack_success_rate(clean, test, attack.stamp, attack.relabel).fraction < 0.5
