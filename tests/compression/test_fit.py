"""Factors fitted to a kernel, or to what its layer is fed: the loss they tell is what they lose."""

import gc
import itertools
import weakref

import pytest
import torch
from factor_networks import seeded
from torch import nn

from edgeclean.compression.decompose import factored_block
from edgeclean.compression.fit import (
    ActivationFit,
    WeightFit,
    _patches,
    corrected_kernel,
    input_moments,
    lower_triangle,
)
from edgeclean.compression.flow import Flow
from edgeclean.compression.tucker import factorise


def reconstruction_loss(conv, fit, ranks):
    kernel = conv.weight.detach()
    return float((kernel - fit.at(ranks).kernel()).square().sum() / kernel.square().sum())


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (24, 3, 3, 3), (6, 9, 1, 1), (5, 12, 1, 3)])
def test_the_loss_of_a_weight_fit_is_its_error(shape):
    conv = seeded(lambda: nn.Conv2d(shape[1], shape[0], shape[2:])).double()
    fit = WeightFit(factorise(conv.weight), shape[:2])
    pairs = itertools.product((1, 2, shape[0] - 1, shape[0]), (1, 2, shape[1] - 1, shape[1]))
    for ranks in pairs:
        if shape[2:] == (1, 1) and ranks[0] != ranks[1]:
            continue
        assert fit.loss(ranks) == pytest.approx(reconstruction_loss(conv, fit, ranks), abs=1e-10)


def correlated_patches(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    mix = mix * torch.logspace(0, -2, size, dtype=torch.float64)
    patches = mix @ torch.randn(size, 4000, generator=generator, dtype=torch.float64)
    return patches @ patches.T / 4000


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (24, 3, 3, 3), (6, 9, 1, 1), (9, 6, 1, 1)])
def test_the_loss_of_an_activation_fit_is_the_outputs_error(shape):
    conv = seeded(lambda: nn.Conv2d(shape[1], shape[0], shape[2:])).double()
    matrix = conv.weight.detach().flatten(1)
    moment = correlated_patches(matrix.shape[1])
    fit = ActivationFit(conv.weight, moment, 1e-9)
    by_weights = WeightFit(factorise(conv.weight), shape[:2])
    total = float(((matrix @ moment) * matrix).sum())

    def outputs_lost(some_fit, ranks):
        gap = matrix - some_fit.at(ranks).kernel().flatten(1)
        return float(((gap @ moment) * gap).sum()) / total

    pairs = itertools.product((1, 3, shape[0] - 1, shape[0]), (1, 2, shape[1] - 1, shape[1]))
    for ranks in pairs:
        if shape[2:] == (1, 1) and (ranks[0] != ranks[1] or ranks[0] > min(shape[:2])):
            continue
        assert fit.loss(ranks) == pytest.approx(outputs_lost(fit, ranks), abs=1e-7)
        if ranks[1] == shape[1] or shape[2:] == (1, 1):  # then the fit is the optimum
            assert fit.loss(ranks) <= outputs_lost(by_weights, ranks) + 1e-7


def test_the_input_basis_is_the_optimum_for_uncorrelated_pixels():
    """With C = Cx (x) I the loss is that of the singular values of W_(2) Cx^1/2 left out."""
    conv = seeded(lambda: nn.Conv2d(6, 8, (1, 3))).double()
    channels = correlated_patches(6)
    fit = ActivationFit(conv.weight, torch.kron(channels, torch.eye(3).double()), 1e-9)
    unfolded = conv.weight.detach().transpose(0, 1).flatten(1)
    energies = torch.linalg.eigvals(channels @ unfolded @ unfolded.T).real.sort().values
    for rank in range(1, 6):
        left_out = float(energies[: 6 - rank].sum() / energies.sum())
        assert fit.loss((8, rank)) == pytest.approx(left_out, rel=1e-4, abs=1e-8)


def test_an_activation_fit_at_full_rank_is_the_kernel():
    conv = seeded(lambda: nn.Conv2d(6, 8, 3)).double()
    fit = ActivationFit(conv.weight, correlated_patches(54), 0.01)
    torch.testing.assert_close(fit.at((8, 6)).kernel(), conv.weight.detach(), rtol=0, atol=1e-10)
    cut = fit.at((7, 5))
    for factor in (cut.factor_out, cut.factor_in):
        torch.testing.assert_close(
            factor.T @ factor, torch.eye(factor.shape[1], dtype=factor.dtype), rtol=0, atol=1e-10
        )


def test_a_huge_ridge_makes_an_activation_fit_a_weight_fit():
    conv = seeded(lambda: nn.Conv2d(6, 8, 3)).double()
    leaning = ActivationFit(conv.weight, correlated_patches(54), 1e9)
    weights = WeightFit(factorise(conv.weight), (8, 6))
    # a regression given the input basis: never worse than the truncated decomposition
    assert leaning.loss((4, 6)) == pytest.approx(weights.loss((4, 6)), abs=1e-6)
    assert leaning.loss((4, 3)) <= weights.loss((4, 3)) + 1e-6


def test_inputs_that_are_always_zero_still_give_factors():
    conv = seeded(lambda: nn.Conv2d(4, 4, 3)).double()
    fit = ActivationFit(conv.weight, torch.zeros(36, 36, dtype=torch.float64), 0.01)
    assert bool(torch.isfinite(fit.at((2, 2)).kernel()).all())


def test_an_activation_fit_is_freed_with_its_last_name():
    """Its matrices take 200 MB at 512 channels, and the collector may not come by for long."""
    conv = seeded(lambda: nn.Conv2d(4, 4, 3)).double()
    fit = ActivationFit(conv.weight, correlated_patches(36), 0.01)
    fit.loss((2, 2))
    fit.at((2, 2))
    gone = weakref.ref(fit)
    gc.disable()
    try:
        del fit
        assert gone() is None
    finally:
        gc.enable()


def test_a_moment_that_rounding_made_indefinite_is_still_factored():
    vector = torch.randn(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moment = vector @ vector.T
    moment.diagonal().sub_(1e-9)
    triangle = lower_triangle(moment)
    torch.testing.assert_close(triangle @ triangle.T, moment, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="not positive definite"):
        lower_triangle(-moment)


@pytest.mark.parametrize(
    "geometry",
    [{"padding": 1, "stride": 2}, {"padding": "same", "dilation": 2}, {"padding": "valid"}],
    ids=str,
)
def test_moments_give_the_outputs_energy(geometry):
    conv = seeded(lambda: nn.Conv2d(3, 4, 3, bias=False, **geometry))
    module = nn.Sequential(nn.ReLU(), conv)
    images = torch.randn(21, 3, 9, 10, generator=torch.Generator().manual_seed(0))
    moment = input_moments(Flow(module, images), "1").own
    matrix = conv.weight.detach().double().flatten(1)
    with torch.no_grad():
        energy = module(images).double().square().sum(dim=1).mean()
    assert float(((matrix @ moment) * matrix).sum()) == pytest.approx(float(energy), rel=1e-5)


def test_a_corrected_kernel_undoes_a_change_before_it():
    reference = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1))).eval()
    changed = seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1))).eval()
    with torch.no_grad():
        for layer in (reference[0], changed[0]):
            layer.bias.zero_()
        changed[0].weight.mul_(torch.linspace(0.3, 2, 6)[:, None, None, None])
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    moments = input_moments(Flow(changed, images), "1", Flow(reference, images))
    kernel = corrected_kernel(reference[1].weight, moments, 1e-4)
    before = (changed(images) - reference(images)).detach().norm()
    with torch.no_grad():
        changed[1].weight.copy_(kernel)
    assert float((changed(images) - reference(images)).detach().norm()) < 0.05 * float(before)


def test_what_is_no_convolution_of_a_known_form_has_no_factors():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    with pytest.raises(TypeError, match="layer 0 is a Flatten, not a convolution or linear"):
        input_moments(Flow(module, torch.rand(2, 3, 2, 2)), "0")
    for conv in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, padding_mode="circular")):
        with pytest.raises(ValueError, match="groups="):
            factored_block(conv)


@pytest.mark.parametrize("side", [6, 7, 14])
def test_every_place_of_a_plane_is_among_the_patches(side):
    """However few are taken: a step that falls on some columns alone would not see the others."""
    places = torch.zeros(400, 1, side, side)
    places[:, 0] = torch.arange(float(side * side)).view(side, side)
    conv = nn.Conv2d(1, 1, 1)
    for most in (400 * side * side // step for step in range(1, 9)):
        seen = _patches(conv, places, most)
        assert seen.shape[1] <= 2 * most
        counts = torch.bincount(seen.flatten().long(), minlength=side * side)
        assert int(counts.min()) >= 0.9 * float(counts.float().mean()) - 1
