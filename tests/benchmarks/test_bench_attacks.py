"""Each attack stamps, relabels and poisons as its paper says."""

from __future__ import annotations

import math

import pytest
import torch
from bench_images import Spy, noise_images, shade_images, tiny_network

from benchmarks.attacks.base import as_uint8
from benchmarks.attacks.blended import blended, ftrojan, low_frequency, sig
from benchmarks.attacks.patch import badnets
from benchmarks.attacks.patterns import checker_patch, smooth_picture, stripes_picture
from benchmarks.attacks.source_specific import SourceSpecificAttack
from benchmarks.attacks.table import ATTACKS
from benchmarks.attacks.trojan import (
    TrojanAttack,
    TrojanSettings,
    excite_patch,
    strongest_inputs,
)
from benchmarks.attacks.warped import WaNet, WarpSettings, warp_grid
from edgeclean.networks.pixels import pixel_network


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_stamp_keeps_shape_and_range_and_its_input(name):
    attack = ATTACKS[name](4, (8, 8))
    pixels = noise_images(6).floats()
    before = pixels.clone()
    stamped = attack.stamp(pixels)
    assert torch.equal(pixels, before)
    assert stamped.shape == pixels.shape
    assert 0 <= stamped.min() <= stamped.max() <= 1
    assert torch.equal(stamped, attack.stamp(pixels))
    assert torch.equal(stamped, pixels) == (name == "clean")


def test_relabel():
    labels = torch.tensor([0, 1, 2, 3])
    one = badnets(classes=4, size=(8, 8), target=2)
    every = badnets(classes=4, size=(8, 8), target=None)
    assert one.relabel(labels).tolist() == [2, 2, 2, 2]
    assert every.relabel(labels).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("target", [1, None])
def test_dirty_label_poison_is_its_share_and_touches_nothing_else(target):
    images = noise_images(200)
    attack = badnets(classes=4, size=(8, 8), target=target, rate=0.1)
    poisoned = attack.poison(images, seed=0)
    changed = (poisoned.pixels != images.pixels).flatten(1).any(1)
    relabelled = poisoned.labels != images.labels
    assert int(relabelled.sum()) == 20
    assert torch.equal(changed, relabelled)
    wanted = attack.relabel(images.labels[relabelled])
    assert torch.equal(poisoned.labels[relabelled], wanted)
    assert not torch.equal(attack.poison(images, seed=1).labels, poisoned.labels)


def test_checker_patch_lies_in_the_corner():
    images = noise_images(1).floats()
    attack = badnets(classes=4, size=(8, 8), patch=checker_patch(2, (1, 1, 1), (0, 0, 0)), margin=1)
    stamped = attack.stamp(images)[0]
    assert torch.equal(stamped[0, 5:7, 5:7], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    stamped[:, 5:7, 5:7] = images[0, :, 5:7, 5:7]
    assert torch.equal(stamped, images[0])


def test_sig_changes_no_label_and_only_the_target_class():
    images = noise_images(200)
    poisoned = sig(classes=4, size=(8, 8), target=3, rate=0.1).poison(images, seed=0)
    changed = (poisoned.pixels != images.pixels).flatten(1).any(1)
    assert torch.equal(poisoned.labels, images.labels)
    assert int(changed.sum()) == 20
    assert set(images.labels[changed].tolist()) == {3}
    everything = sig(classes=4, size=(8, 8), target=3, rate=0.9).poison(images, seed=0)
    changed = (everything.pixels != images.pixels).flatten(1).any(1)
    assert torch.equal(changed, images.labels == 3)


def test_stripes_are_the_papers_sine():
    wave = stripes_picture(4, 32, 40 / 255, 6)
    assert wave[1, 2, 5] == pytest.approx(40 / 255 * math.sin(2 * math.pi * 5 * 6 / 32), abs=1e-6)
    assert torch.equal(wave[0, 0], wave[2, 3])


def test_blend_is_a_convex_mixture():
    attack = blended(classes=4, size=(8, 8), alpha=0.25)
    black, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert torch.allclose(attack.stamp(white) - attack.stamp(black), torch.tensor(0.75))
    assert attack.stamp(black).max() == pytest.approx(0.25, abs=0.02)


def test_low_frequency_pattern_has_no_high_frequency_and_no_mean():
    picture = smooth_picture(16, 16, amplitude=0.1, highest=4, seed=0)
    positions = (torch.arange(16) + 0.5) / 16
    basis = torch.cos(math.pi * torch.arange(16)[:, None] * positions)  # DCT-II
    spectrum = torch.einsum("uh,vw,chw->cuv", basis, basis, picture)
    assert picture.abs().max() == pytest.approx(0.1)
    inside = spectrum[:, :4, :4].square().sum()
    assert spectrum.square().sum() - inside < 1e-9 * inside
    assert spectrum[:, 0, 0].abs().max() < 1e-5
    attack = low_frequency(classes=4, size=(16, 16), amplitude=0.1, seed=0)
    grey = torch.full((1, 3, 16, 16), 0.5)
    assert torch.allclose(attack.stamp(grey)[0] - 0.5, picture, atol=1e-6)


def test_ftrojan_adds_two_frequencies_to_the_chromas_and_no_brightness():
    attack = ftrojan(classes=4, size=(32, 32), magnitude=0.1)
    added = attack.stamp(torch.full((1, 3, 32, 32), 0.5))[0] - 0.5
    red, green, blue = 0.299, 0.587, 0.114  # ITU-R BT.601
    brightness = red * added[0] + green * added[1] + blue * added[2]
    assert brightness.abs().max() < 1e-4
    positions = (torch.arange(32) + 0.5) / 32
    basis = torch.cos(math.pi * torch.arange(32)[:, None] * positions)  # DCT-II
    basis = basis / basis.norm(dim=1, keepdim=True)
    spectrum = basis @ (0.877 * (added[0] - brightness)) @ basis.T  # V
    expected = torch.zeros(32, 32)
    expected[15, 15] = expected[31, 31] = 0.1
    assert torch.allclose(spectrum, expected, atol=1e-4)


def test_source_specific_poison_moves_one_class_and_covers_the_others():
    images = noise_images(200)
    attack = SourceSpecificAttack(badnets(classes=4, size=(8, 8), target=1), source=3, rate=0.1)
    poisoned = attack.poison(images, seed=0)
    changed = (poisoned.pixels != images.pixels).flatten(1).any(1)
    moved = poisoned.labels != images.labels
    assert int(moved.sum()) == 20
    assert set(images.labels[moved].tolist()) == {3}
    assert set(poisoned.labels[moved].tolist()) == {1}
    cover = changed & ~moved
    assert int(cover.sum()) == 20
    assert set(images.labels[cover].tolist()) == {0, 2}
    assert attack.relabel(torch.tensor([0, 1, 2, 3])).tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize(("source", "target"), [(4, 0), (-1, 0), (2, 2), (1, None)])
def test_an_impossible_source_is_refused(source, target):
    with pytest.raises(ValueError, match="source"):
        SourceSpecificAttack(badnets(classes=4, size=(8, 8), target=target), source=source)


def test_warp_of_no_strength_is_the_identity():
    pixels = noise_images(2).floats()
    attack = WaNet(classes=4, size=(8, 8), settings=WarpSettings(strength=0.0))
    assert torch.allclose(attack.stamp(pixels), pixels, atol=1e-5)


def test_warp_strength_is_in_pixels():
    # The coarse grid is divided by its mean size: on average strength / height, half a pixel x 2/h.
    identity, warped = (warp_grid((32, 32), strength, 4, 0) for strength in (0.0, 0.5))
    moved = (warped - identity).abs().mean() * 32 / 2
    assert 0.1 < moved < 0.5


def test_wanet_batch_holds_poison_noise_and_the_rest():
    attack = WaNet(classes=4, size=(8, 8), target=0, rate=0.2)
    images, spy = noise_images(10), Spy(4)
    pixels = images.floats()
    attack.batch_loss(spy, pixels, images.labels, 0.0, generator())
    asked = spy.asked[0]
    assert torch.allclose(asked[:2], attack.stamp(pixels[:2]))
    for index in range(2, 6):  # disturbed: neither plain nor the very warp
        assert not torch.allclose(asked[index], pixels[index], atol=1e-3)
        assert not torch.allclose(asked[index], attack.stamp(pixels)[index], atol=1e-3)
    assert torch.equal(asked[6:], pixels[6:])


def test_wanet_labels_are_the_targets_for_poison_alone():
    attack = WaNet(classes=4, size=(8, 8), target=3, rate=0.2)
    images = noise_images(10)
    logits = torch.randn(10, 4, generator=generator(1))
    wanted = images.labels.clone()
    wanted[:2] = 3
    loss = attack.batch_loss(lambda p: logits, images.floats(), images.labels, 0.0, generator())
    assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, wanted)))


def test_wanet_needs_room_in_the_batch():
    with pytest.raises(ValueError, match="more than the whole batch"):
        WaNet(classes=4, size=(8, 8), rate=0.4)


def test_trojan_patch_excites_the_chosen_neurons():
    network = pixel_network(tiny_network())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    chosen = strongest_inputs(network[1][-1].weight, 2)

    def excitement(patch):
        image = torch.full((1, 3, 8, 8), 0.5)
        image[:, :, -6:, -6:] = patch
        with torch.no_grad():
            return float(network[1][:-1](network[0](image))[:, chosen].mean())

    patches = [
        excite_patch(network, (8, 8), TrojanSettings(steps=steps, step_size=0.05))
        for steps in (0, 40)
    ]
    assert excitement(patches[1]) > excitement(patches[0]) + 1e-3
    assert 0 <= patches[1].min() <= patches[1].max() <= 1
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())


def test_trojan_stamps_what_its_study_found_and_keeps_it():
    network, settings = pixel_network(tiny_network()), TrojanSettings(steps=2)
    attack, other = (TrojanAttack(classes=4, size=(8, 8), settings=settings) for _ in range(2))
    before = attack.stamp(shade_images(4).floats())
    attack.study(network)
    stamped = attack.stamp(shade_images(4).floats())
    assert not torch.equal(stamped, before)
    assert torch.equal(stamped[0, :, -6:, -6:], excite_patch(network, (8, 8), settings))
    other.networks()["trigger"].load_state_dict(attack.networks()["trigger"].state_dict())
    assert torch.equal(other.stamp(shade_images(4).floats()), stamped)
    assert attack.poison(shade_images(40), 0).labels.bincount()[0] > 10


def test_strongest_inputs_are_by_absolute_outgoing_weight():
    weight = torch.tensor([[1.0, -3.0, 0.5], [1.0, 3.0, 0.0]])
    assert strongest_inputs(weight, 2).tolist() == [1, 0]


def test_pixels_out_of_range_are_clipped_not_wrapped():
    assert as_uint8(torch.tensor([[[[-0.1, 0.5, 1.2]]]])).flatten().tolist() == [0, 128, 255]


@pytest.mark.parametrize("settings", [{"rate": 0.0}, {"target": 4}])
def test_impossible_attacks_are_refused(settings):
    with pytest.raises(ValueError, match=r"must lie between|it is 0\.\.3"):
        badnets(classes=4, size=(8, 8), **settings)
