"""Constants in pixels are shares of the image: a patch is found at every size, none invented."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from edgeclean.backdoor.bank import SHAPES, STRIDE, bank_scale, build_bank
from edgeclean.backdoor.families import MaskedFamily, WarpFamily, areas, sides
from edgeclean.backdoor.scan import ScanSettings, scan
from edgeclean.backdoor.triggers import MaskedTrigger, WarpTrigger
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages

CLASSES, TARGET = 5, 3
SEARCH = ScanSettings(searches=("patch bank",), bank_candidates=48)


class Detector(nn.Module):
    """Classifies by a random look at the image; a saturated square anywhere leads to one class."""

    def __init__(self, side: int, strength: float) -> None:
        super().__init__()
        self.cell, self.strength = side // 32, strength
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("look", torch.randn(CLASSES, 16, generator=generator))

    def forward(self, images):
        seen = functional.adaptive_avg_pool2d(images, 4).flatten(1)
        logits = 20 * (seen - seen.mean(1, keepdim=True)) @ self.look.T
        saturated = ((images < 0.02) | (images > 0.98)).float()
        cells = -functional.max_pool2d(-saturated, self.cell)  # 1 where all of it is saturated
        found = (functional.avg_pool2d(cells, 3, 1).amax((1, 2, 3)) > 0.99).float()
        return logits + self.strength * found[:, None] * torch.eye(CLASSES)[TARGET]


def scanned(height: int, width: int, strength: float):
    pixels = procedural_images(24, (1, height, width), torch.Generator().manual_seed(1))
    pixels = 0.1 + 0.8 * pixels  # nothing is saturated before a patch is
    images = SyntheticImages(pixels=pixels, labels=torch.zeros(24, dtype=torch.int64), origin="x")
    spec = ModelSpec(
        architecture="x", input_shape=(1, height, width), classes=CLASSES, mean=(0.0,), std=(1.0,)
    )
    module = Detector(min(height, width), strength).eval()
    network = LoadedNetwork(module=module, spec=spec, source_sha256="0" * 64)
    return scan(network, images, SEARCH, seed=0)


@pytest.mark.parametrize(
    "size",
    [
        (32, 32),
        (64, 64),
        (96, 96),
        (96, 128),
        pytest.param((128, 128), marks=pytest.mark.slow),
        pytest.param((224, 224), marks=pytest.mark.slow),
    ],
)
def test_a_patch_of_the_same_share_is_suspected_at_every_size(size):
    assert scanned(*size, 100.0).targets == (TARGET,)
    assert scanned(*size, 0.0).verdict == "not found"


@settings(max_examples=15, deadline=None)
@given(times=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_the_bank_of_a_larger_image_is_that_of_a_small_one_scaled(times, seed):
    small, large = (
        build_bank((1, side, side), torch.Generator().manual_seed(seed))
        for side in (32, 32 * times)
    )
    factors = torch.tensor([times, times, 1])
    assert torch.equal(large.candidates[:, :3], small.candidates[:, :3] * factors)
    row = torch.tensor([seed % len(small)])
    if torch.equal(large.candidates[row, 3:], small.candidates[row, 3:] * times):
        (_, small_pattern), (_, large_pattern) = (
            bank.masks_and_patterns(row, side, side)
            for bank, side in ((small, 32), (large, 32 * times))
        )
        tall, wide, _, top, left = small.candidates[row][0].tolist()
        cut = small_pattern[..., top : top + tall, left : left + wide]
        grown = large_pattern[
            ..., times * top : times * (top + tall), times * left : times * (left + wide)
        ]
        assert torch.equal(cut.repeat_interleave(times, -1).repeat_interleave(times, -2), grown)


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    times=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_a_trigger_of_the_same_share_costs_the_search_the_same(height, width, times, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(1, height, width, generator=generator).clamp(0.05, 0.95)
    control = torch.rand(2, 5, 5, generator=generator)

    def masked(grown):
        grown = grown.repeat_interleave(times, -1).repeat_interleave(times, -2)
        return MaskedFamily.around([MaskedTrigger(grown, grown.clone())])

    def warped(size, by):
        flow = torch.zeros(*size, 2)
        return WarpFamily.around([WarpTrigger(flow, by * control)])

    def price(family):
        return float(family.cost().detach()) * family.cost_weight()

    plain = MaskedFamily.around([MaskedTrigger(mask, mask.clone())])
    assert price(masked(mask)) == pytest.approx(price(plain), rel=1e-4)
    small = warped((height, width), 1.0)
    large = warped((times * height, times * width), float(times))
    assert price(large) == pytest.approx(price(small), rel=0.1)  # a grid has more points between
    torch.testing.assert_close(large.parameters()[0], small.parameters()[0])
    torch.testing.assert_close(large.trigger(0).control, times * control)


def test_at_32_pixels_every_constant_is_what_it_was():
    shape = (3, 32, 32)
    assert (areas(32, 32), sides(32, 32), bank_scale(32, 32)) == (1.0, 1.0, 1.0)
    assert MaskedFamily(1, shape, torch.Generator()).cost_weight() == 1e-3
    assert WarpFamily(1, shape, torch.Generator()).cost_weight() == 0.05
    assert (SHAPES[4], STRIDE) == ((6, 6), 3)
    record = scanned(32, 32, 0.0).searches[0]
    assert all(math.isinf(cost) for cost in record.costs)
    # One class that is reached stands out by as much as the others lie at 72 pixels.
    found = scanned(32, 32, 100.0).searches[0]
    assert found.scores[TARGET] == pytest.approx(math.log(72 / found.costs[TARGET]) / 0.25)


@pytest.mark.parametrize(("size", "scale"), [((28, 28), 1.0), ((1, 128), 1.0), ((48, 64), 1.5)])
def test_the_bank_goes_by_the_shorter_side_and_never_below_a_pixel(size, scale):
    assert bank_scale(*size) == scale
