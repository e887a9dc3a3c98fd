"""Input-Aware: whose trigger is put where, and what its two networks learn from."""

from __future__ import annotations

import math

import pytest
import torch
from bench_images import Spy, noise_images

from benchmarks.attacks.input_aware import (
    InputAware,
    InputAwareSettings,
    diversity_loss,
    mask_loss,
)

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepared(target=0, mask_epochs=1) -> InputAware:
    settings = InputAwareSettings(width=4, mask_epochs=mask_epochs)
    attack = InputAware(classes=4, target=target, rate=0.2, settings=settings)
    attack.prepare(noise_images(32), seed=0, device=CPU, mixed=False)
    return attack


def test_stamps_each_image_its_own_way():
    attack = prepared()
    pixels = noise_images(4).floats()
    with torch.no_grad():
        patterns = attack._pattern(pixels)
    assert not torch.allclose(patterns[0], patterns[1], atol=1e-4)


def test_labels_poison_and_keeps_those_of_cross_triggers():
    attack = prepared(target=3)
    images = noise_images(10)
    logits = torch.randn(10, 4, generator=generator(1))
    wanted = images.labels.clone()
    wanted[:2] = 3
    right = torch.nn.functional.cross_entropy(logits, wanted)

    def loss(answer):
        with torch.no_grad():
            return float(
                attack.batch_loss(
                    lambda pixels: answer, images.floats(), images.labels, 0.0, generator()
                )
            )

    # The diversity term is the same in both; the rest of the difference is the cross-entropy.
    assert loss(logits) - loss(0 * logits) == pytest.approx(float(right) - math.log(4), abs=1e-4)


def test_gradients_do_not_pile_up():
    attack = prepared()
    images, network = noise_images(10), Spy(4)
    attack.batch_loss(network, images.floats(), images.labels, 0.0, generator()).backward()
    before = [weight.detach().clone() for weight in attack.generator_network.parameters()]
    assert any(weight.grad.abs().sum() > 0 for weight in attack.generator_network.parameters())
    assert all(weight.grad is None for weight in attack.mask_network.parameters())
    attack.after_backward()
    after = list(attack.generator_network.parameters())
    assert all(weight.grad is None for weight in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_mask_learns_to_be_small():
    untrained, trained = prepared(mask_epochs=0), prepared(mask_epochs=12)
    pixels = noise_images(16, seed=1).floats()
    with torch.no_grad():
        areas = [float(attack._mask(pixels).mean()) for attack in (untrained, trained)]
    assert areas[1] < areas[0]


def test_a_batch_holds_own_triggers_then_those_of_others_then_plain_images():
    attack, images, spy = prepared(), noise_images(10), Spy(4)
    pixels = images.floats()
    attack.batch_loss(spy, pixels, images.labels, 0.0, generator())
    asked, neighbours = spy.asked[0], pixels.roll(1, dims=0)
    with torch.no_grad():
        attack.generator_network.train()  # as in the batch: its statistics are the two images'
        for rows, makers in ((slice(0, 2), pixels), (slice(2, 4), neighbours)):
            mask = attack._mask(makers[rows])
            stamped = pixels[rows] + (attack._pattern(makers[rows]) - pixels[rows]) * mask
            assert torch.allclose(asked[rows], stamped, atol=1e-5)
            assert not torch.allclose(stamped, pixels[rows], atol=1e-2)
    assert torch.equal(asked[4:], pixels[4:])


def test_the_diversity_loss_is_the_images_distance_over_the_outputs():
    images, outputs = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    partners = torch.stack((images[0] + 0.6, images[1] - 0.2))
    others = torch.stack((outputs[0] + 0.3, outputs[1] + 0.4))
    assert diversity_loss(images, partners, outputs, others) == pytest.approx((2 + 0.5) / 2)


def test_the_mask_loss_prices_what_lies_beyond_the_density():
    pixels = torch.zeros(3, 3, 4, 4)
    pixels[1], pixels[2] = 0.3, 0.5  # partners: 2 of 0, 0 of 1, 1 of 2
    masks = torch.zeros(3, 1, 4, 4)
    masks[1], masks[2] = 0.1, 0.6
    beyond = (0.0 + 0.05 + 0.55) / 3
    spread = (0.5 / 0.6 + 0.3 / 0.1 + 0.2 / 0.5) / 3
    assert mask_loss(masks, pixels, 0.05) == pytest.approx(100 * beyond + spread, rel=1e-4)
