"""The order in which a layer's channels go, what is lost, and the layer that is left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeclean.compression.fit import ActivationFit, Covariances
from edgeclean.compression.hidden import HiddenFit, refitted

RIDGE = 1e-9


def inputs_of(channels, taps, patches, seed, *, dead=()):
    """[n, patches]: correlated inputs with means of their own; dead channels never change."""
    generator = torch.Generator().manual_seed(seed)
    n = channels * taps
    mix = torch.randn(n, max(1, n // 2), generator=generator, dtype=torch.float64)
    common = torch.randn(mix.shape[1], patches, generator=generator, dtype=torch.float64)
    own = torch.randn(n, patches, generator=generator, dtype=torch.float64)
    values = mix @ common + 0.5 * own + torch.randn(n, 1, generator=generator, dtype=torch.float64)
    for channel in dead:
        values[channel * taps : (channel + 1) * taps] = 1.75
    return values


def moments_of(values, reference=None):
    theirs = values if reference is None else reference
    centred, their_centred = (one - one.mean(1, keepdim=True) for one in (values, theirs))
    count = values.shape[1]
    return Covariances(
        own=centred @ centred.T / count,
        crossed=their_centred @ centred.T / count,
        mean=values.mean(1),
        reference_mean=theirs.mean(1),
        patches=10**9,  # as if there were any number, so that nothing is shrunk
    )


def weights_of(out, n, seed):
    return torch.randn(out, n, generator=torch.Generator().manual_seed(seed + 77))


def entries_of(kept, taps):
    return (torch.tensor(kept)[:, None] * taps + torch.arange(taps)).flatten()


def lost_share(weights, values, kept, taps, layer):
    """Measured on the inputs themselves, over the energy that `ActivationFit` counts."""
    matrix, bias = layer
    outputs = weights.double() @ values
    change = outputs - (matrix @ values[entries_of(kept, taps)] + bias[:, None])
    return float(change.square().sum() / outputs.square().sum())


DRAWN = dict(
    channels=st.integers(2, 14), taps=st.sampled_from([1, 4, 9]), seed=st.integers(0, 10**6)
)


@settings(max_examples=40, deadline=None)
@given(**DRAWN)
def test_the_loss_foretold_is_the_energy_that_is_lost(channels, taps, seed):
    values = inputs_of(channels, taps, 8 * channels * taps + 20, seed)
    weights, moments = weights_of(6, channels * taps, seed), moments_of(values)
    fit = HiddenFit(weights, moments, channels=channels, ridge=RIDGE)
    for kept in range(1, channels + 1):
        left = fit.kept(kept)
        layer = refitted(weights, moments, entries_of(left, taps), RIDGE)
        assert len(left) == kept
        assert lost_share(weights, values, left, taps, layer) == pytest.approx(
            fit.loss(kept), rel=1e-4, abs=1e-7
        )


@settings(max_examples=40, deadline=None)
@given(**DRAWN)
def test_fewer_channels_are_some_of_the_more_and_lose_no_less(channels, taps, seed):
    values = inputs_of(channels, taps, 8 * channels * taps + 20, seed)
    weights = weights_of(6, channels * taps, seed)
    fit = HiddenFit(weights, moments_of(values), channels=channels, ridge=0.01)
    losses = [fit.loss(kept) for kept in range(channels, 0, -1)]
    assert losses == sorted(losses)
    assert losses[0] == 0.0
    for kept in range(1, channels):
        assert set(fit.kept(kept)) < set(fit.kept(kept + 1))


@settings(max_examples=40, deadline=None)
@given(**DRAWN)
def test_a_refit_loses_no_more_than_leaving_channels_out(channels, taps, seed):
    values = inputs_of(channels, taps, 8 * channels * taps + 20, seed)
    weights, moments = weights_of(6, channels * taps, seed), moments_of(values)
    kept = list(range(0, channels, 2))
    entries = entries_of(kept, taps)
    fitted = lost_share(weights, values, kept, taps, refitted(weights, moments, entries, RIDGE))
    plain = weights.double()[:, entries], torch.zeros(6, dtype=torch.float64)
    gone = [place for place in range(channels * taps) if place not in set(entries.tolist())]
    biased = plain[0], weights.double()[:, gone] @ values[gone].mean(1)
    assert fitted <= lost_share(weights, values, kept, taps, plain) + 1e-9
    assert fitted <= lost_share(weights, values, kept, taps, biased) + 1e-9


@settings(max_examples=30, deadline=None)
@given(channels=st.integers(3, 12), taps=st.sampled_from([1, 4]), seed=st.integers(0, 10**6))
def test_dead_and_unread_channels_go_first_and_cost_nothing(channels, taps, seed):
    dead, unread = channels - 1, 0
    values = inputs_of(channels, taps, 8 * channels * taps + 20, seed, dead=(dead,))
    weights = weights_of(6, channels * taps, seed)
    weights[:, unread * taps : (unread + 1) * taps] = 0
    moments = moments_of(values)
    fit = HiddenFit(weights, moments, channels=channels, ridge=0.01)
    assert fit.loss(channels - 2) == pytest.approx(0.0, abs=1e-6)
    left = fit.kept(channels - 2)
    assert not {dead, unread} & set(left)
    layer = refitted(weights, moments, entries_of(left, taps), RIDGE)
    assert lost_share(weights, values, left, taps, layer) == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(**DRAWN)
def test_all_channels_leave_the_layer_as_it_was(channels, taps, seed):
    values = inputs_of(channels, taps, 8 * channels * taps + 20, seed)
    weights = weights_of(6, channels * taps, seed)
    for ridge in (RIDGE, 0.01, 1.0):
        every = torch.arange(channels * taps)
        matrix, bias = refitted(weights, moments_of(values), every, ridge)
        assert torch.allclose(matrix.float(), weights, atol=1e-5)
        assert float(bias.abs().max()) < 1e-5


def test_the_energy_is_the_one_that_ranks_are_judged_by():
    values = inputs_of(8, 9, 400, 5)
    kernel = weights_of(6, 72, 5).reshape(6, 8, 3, 3)
    moments = moments_of(values)
    ranks = ActivationFit(kernel, values @ values.T / values.shape[1], 0.01)
    assert HiddenFit(kernel.flatten(1), moments, channels=8, ridge=0.01).total == pytest.approx(
        ranks._total, rel=1e-6
    )


def test_few_patches_are_not_trusted_to_replace_channels():
    """With as many patches as inputs anything can be fitted, and nothing is learned by that."""
    values = torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = weights_of(4, 40, 0)
    many = moments_of(values)
    few = Covariances(
        **{name: getattr(many, name) for name in ("own", "crossed", "mean", "reference_mean")},
        patches=40,
    )
    trusted = HiddenFit(weights, many, channels=40, ridge=0.01)
    doubted = HiddenFit(weights, few, channels=40, ridge=0.01)
    assert doubted.loss(20) > trusted.loss(20)
    matrix, _ = refitted(weights, few, torch.arange(20), 0.01)
    assert torch.allclose(matrix.float(), weights[:, :20], atol=1e-5)


def test_a_layer_comes_back_to_what_another_network_feeds():
    """With inputs that are doubled since, the weights are halved."""
    values = inputs_of(10, 1, 300, 2)
    weights = weights_of(6, 10, 2)
    every = torch.arange(10)
    matrix, bias = refitted(weights, moments_of(2 * values, values), every, RIDGE)
    assert torch.allclose(2 * matrix, weights.double(), atol=1e-4)
    assert float(bias.abs().max()) < 1e-3


def test_without_moments_the_weights_decide():
    weights = torch.diag(torch.tensor([4.0, 1.0, 3.0, 2.0]))
    fit = HiddenFit(weights, None, channels=4, ridge=0.01)
    assert fit.kept(2) == (0, 2)
    assert fit.loss(2) == pytest.approx(5 / 30)
    matrix, bias = refitted(weights, None, torch.tensor([0, 2]), 0.01)
    assert torch.equal(matrix.float(), weights[:, [0, 2]])
    assert not bias.any()
