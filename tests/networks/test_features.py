"""Features are taken at a few depths, and compared in the unit of each channel."""

import pytest
import torch
from torch import nn

from edgeclean.networks.features import (
    channel_moments,
    feature_distance,
    feature_scales,
    shared_taps,
)


def test_few_layers_are_tapped_the_last_among_them():
    deep = nn.Sequential(*(nn.BatchNorm2d(2) for _ in range(30)))
    taps = shared_taps(deep, deep)
    assert len(taps) <= 8
    assert taps[0] == "29"
    assert len(set(taps)) == len(taps)


def test_the_distance_of_features_is_in_deviations_of_the_teachers_channels():
    generator = torch.Generator().manual_seed(0)
    given = {
        "a": torch.randn(6, 3, 4, 4, generator=generator)
        * torch.tensor([1.0, 5, 0.2]).view(3, 1, 1)
    }
    own = {"a": torch.randn(8, 3, 4, 4, generator=generator)}
    scales = feature_scales([channel_moments(given)])
    deviation = (given["a"].var((0, 2, 3)) + 1e-4).sqrt().view(3, 1, 1)
    expected = ((own["a"][:6] - given["a"]) / deviation).square().mean()
    torch.testing.assert_close(feature_distance(own, given, scales, 6), expected)
    # What is attacked (here the last two) does not count, and the unit of a channel neither.
    own["a"][6:] = 100.0
    torch.testing.assert_close(feature_distance(own, given, scales, 6), expected)
    larger = {"a": 10 * given["a"]}
    ten = feature_distance(
        {"a": 10 * own["a"]}, larger, feature_scales([channel_moments(larger)]), 6
    )
    torch.testing.assert_close(ten, expected, rtol=5e-3, atol=0)  # the floor under variances
    assert float(feature_distance({}, {}, {}, 6)) == 0.0


@pytest.mark.parametrize("at_once", [1, 4, 10, 64])
def test_the_units_are_those_of_all_images_whatever_fits_at_once(at_once):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(10, 3, 4, 5, generator=generator) + torch.arange(10.0).view(10, 1, 1, 1)
    parts = [channel_moments({"a": part}) for part in maps.split(at_once)]
    expected = (maps.double().var((0, 2, 3), keepdim=True) + 1e-4).rsqrt().float()
    torch.testing.assert_close(feature_scales(parts)["a"], expected)


def test_the_gradient_of_the_distance_is_that_of_its_formula():
    generator = torch.Generator().manual_seed(1)
    given = {name: torch.randn(6, 3, 4, 4, generator=generator).double() for name in "ab"}
    scales = {name: torch.rand(1, 3, 1, 1, generator=generator).double() + 0.5 for name in "ab"}
    own = {name: torch.randn(8, 3, 4, 4, generator=generator).double() for name in "ab"}
    for feature in own.values():
        feature.requires_grad_()
    formula = sum(((own[n][:6] - given[n]) * scales[n]).square().mean() / 2 for n in "ab")
    wanted = torch.autograd.grad(5 * formula, list(own.values()))
    got = torch.autograd.grad(5 * feature_distance(own, given, scales, 6), list(own.values()))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-12)  # 5 passes through float32
