"""Rates count what their definitions say."""

from __future__ import annotations

import math

import pytest
import torch
from bench_images import noise_images, tiny_network

from benchmarks.data.images import LabelledImages
from benchmarks.metrics import (
    Rate,
    accuracy,
    attack_success_rate,
    defence_effectiveness,
    robust_accuracy,
)
from edgeclean.networks.pixels import pixel_network


def coded_images(labels: list[int]) -> LabelledImages:
    """Images whose first pixel says their class, and whose last says class 0."""
    pixels = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.tensor(labels, dtype=torch.uint8)
    return LabelledImages(pixels=pixels, labels=torch.tensor(labels), classes=("a", "b", "c"))


def read_first_pixel(pixels):
    return torch.nn.functional.one_hot((pixels[:, 0, 0, 0] * 255).round().long(), 3).float()


def write_pixel(value):
    def stamp(pixels):
        stamped = pixels.clone()
        stamped[:, 0, 0, 0] = value / 255
        return stamped

    return stamp


def test_accuracy_counts_right_answers_over_all_batches():
    images = coded_images([0, 1, 2] * 400)
    wrong = LabelledImages(
        pixels=images.pixels, labels=images.labels.clone(), classes=images.classes
    )
    wrong.labels[:7] = (wrong.labels[:7] + 1) % 3
    assert accuracy(read_first_pixel, images) == Rate(hits=1200, total=1200)
    assert accuracy(read_first_pixel, wrong) == Rate(hits=1193, total=1200)


def test_asr_leaves_out_images_of_the_target_class():
    images = coded_images([0, 1, 2, 2, 2])
    assert attack_success_rate(read_first_pixel, images, write_pixel(2), 2) == Rate(hits=2, total=2)
    # A network that knows only class 2 hits every image of class 2, none of which may count.
    assert attack_success_rate(read_first_pixel, images, lambda p: p, 2) == Rate(hits=0, total=2)


def test_robust_accuracy_is_the_original_class_of_stamped_images():
    images = coded_images([0, 1, 2, 2])
    assert robust_accuracy(read_first_pixel, images, lambda p: p, 0) == Rate(hits=3, total=3)
    assert robust_accuracy(read_first_pixel, images, write_pixel(2), 0) == Rate(hits=2, total=3)


def test_all_to_all_counts_every_image():
    def shift(labels):
        return (labels + 1) % 3

    def next_class(pixels):
        stamped = pixels.clone()
        stamped[:, 0, 0, 0] = ((pixels[:, 0, 0, 0] * 255).round() + 1).remainder(3) / 255
        return stamped

    images = coded_images([0, 1, 2, 2])
    assert attack_success_rate(read_first_pixel, images, next_class, shift).hits == 4
    assert attack_success_rate(read_first_pixel, images, lambda p: p, shift) == Rate(
        hits=0, total=4
    )


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (3, 10), (10, 10), (1790, 1800)])
def test_wilson_bounds_solve_the_score_equation(hits, total):
    rate, z = Rate(hits=hits, total=total), 1.959964
    low, high = rate.wilson()
    assert 0 <= low <= rate.fraction <= high <= 1
    for bound in (low, high):
        deviation = abs(rate.fraction - bound)
        assert deviation == pytest.approx(z * math.sqrt(bound * (1 - bound) / total), abs=1e-9)


def test_wilson_of_nothing_is_everything():
    assert Rate(hits=0, total=0).wilson() == (0.0, 1.0)


@pytest.mark.parametrize(
    ("before_after", "wanted"),
    [
        ((0.9, 1.0, 0.9, 0.0), 1.0),
        ((0.9, 1.0, 0.4, 1.0), 0.25),  # accuracy lost lowers it
        ((0.9, 0.5, 0.95, 0.6), 0.5),  # rises count for nothing
        ((0.9717, 0.9720, 0.9770, 0.0296), 0.9712),  # a row of Clean & Compact's Table 4
    ],
)
def test_der(before_after, wanted):
    assert defence_effectiveness(*before_after) == pytest.approx(wanted, abs=1e-9)


def test_der_refuses_percent():
    with pytest.raises(ValueError, match=r"acc_before is 97.0; give a fraction"):
        defence_effectiveness(97.0, 1.0, 0.9, 0.0)


def test_a_network_in_training_mode_is_refused():
    network = tiny_network()
    function = pixel_network(network)  # a new Sequential calls itself training; that is no harm
    accuracy(function, noise_images(4))
    network.module.train()
    with pytest.raises(ValueError, match="training mode"):
        accuracy(function, noise_images(4))
