import pytest
import torch
from factor_networks import Stem, network_of, seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeclean.compression.clamp import ScaleSettings, clamped_core, scale
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.factorisation import Factorisation, merge_block, merged_module
from edgeclean.compression.tucker import factorise, singular_values, tucker2
from edgeclean.errors import UsageError
from edgeclean.networks.state import DecomposedNetwork


def clamped(core, tau, **readings):
    return clamped_core(core, tau, ScaleSettings(tau=tau, **readings))[0]


def spectra_of(kernel):
    return (
        torch.linalg.svdvals(kernel.flatten(1)),
        torch.linalg.svdvals(kernel.transpose(0, 1).flatten(1)),
    )


@settings(max_examples=80, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 1000),
    tau=st.floats(0.05, 3),
    s_sigma=st.sampled_from(["max", "std"]),
    t2=st.sampled_from(["original", "recomputed"]),
)
def test_no_singular_value_rises(shape, seed, tau, s_sigma, t2):
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factors = factorise(kernel)
    core = clamped(factors.core, tau, s_sigma=s_sigma, t2=t2)
    for before, after in zip(spectra_of(factors.core), spectra_of(core), strict=True):
        assert bool((after <= before * (1 + 1e-9) + 1e-9).all())


@pytest.mark.parametrize("t2", ["original", "recomputed"])
@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_tau_of_one_and_more_changes_nothing(tau, t2):
    core = tucker2(seeded(lambda: torch.randn(8, 6, 3, 3))).core
    assert torch.equal(clamped(core, tau, t2=t2), core)


@pytest.mark.parametrize("s_sigma", ["max", "std"])
def test_the_clamp_is_the_decks_formula(s_sigma):
    core = tucker2(seeded(lambda: torch.randn(8, 6, 3, 3, dtype=torch.float64))).core
    tau = 0.7 if s_sigma == "max" else 1.5
    norms_out = core.flatten(1).norm(dim=1)
    norms_in = core.transpose(0, 1).flatten(1).norm(dim=1)

    def normaliser(values):
        return values.max() if s_sigma == "max" else values.std(correction=0)

    step = core * (tau * normaliser(norms_out) / norms_out).clamp(max=1)[:, None, None, None]
    for t2, divisor in (
        ("original", norms_in),
        ("recomputed", step.transpose(0, 1).flatten(1).norm(dim=1)),
    ):
        expected = step * (tau * normaliser(norms_in) / divisor).clamp(max=1)[None, :, None, None]
        scaled = clamped(core, tau, s_sigma=s_sigma, t2=t2)
        torch.testing.assert_close(scaled, expected, rtol=1e-12, atol=0)
        assert not torch.equal(scaled, core)


def test_a_core_of_zeros_stays_zero():
    core = torch.zeros(4, 3, 3, 3)
    assert torch.equal(clamped(core, 0.5), core)


def test_a_pointwise_layer_is_clamped_at_tau_times_its_largest():
    network = decompose(network_of(seeded(Stem)), DecomposeSettings())
    scaled = scale(network, ScaleSettings(tau=0.5))
    before, after = (
        torch.linalg.svdvals(merged_module(one.module).point.weight.detach()[..., 0, 0])
        for one in (network, scaled)
    )
    torch.testing.assert_close(after, before.clamp(max=0.5 * float(before[0])), rtol=1e-5, atol=0)


def test_scale_returns_a_new_network_and_says_what_it_clamped():
    network = decompose(network_of(seeded(Stem)), DecomposeSettings())
    weight = network.module.stem.core.weight.clone()
    scaled = scale(network, ScaleSettings(tau=0.6))
    assert torch.equal(network.module.stem.core.weight, weight)
    norms = Factorisation.from_block(network.module.stem).core.flatten(1).norm(dim=1)
    record = scaled.history[-1]
    assert record.stage == "scale"
    assert record.settings == {"tau": 0.6, "s_sigma": "max", "t2": "recomputed", "agreement": 0.95}
    assert record.notes["clamped_out_in"]["stem"][0] == int((norms > 0.6 * norms.max()).sum())
    assert record.notes["scaled"] is True
    assert scaled.module.stem.expand.weight.equal(network.module.stem.expand.weight)
    spectrum, reference = (
        singular_values(merge_block(one.module.stem).weight, 1) for one in (scaled, network)
    )
    assert float((spectrum / spectrum[0]).std()) < float((reference / reference[0]).std())


def test_without_tau_nothing_is_scaled_and_the_history_says_so():
    network = decompose(network_of(seeded(Stem)), DecomposeSettings())
    scaled = scale(network, ScaleSettings())
    assert scaled.history[-1].notes == {"scaled": False, "clamped_out_in": {}}
    for mine, theirs in zip(scaled.module.parameters(), network.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_tau_is_refused(tau):
    with pytest.raises(UsageError, match=r"tau is .*; it must be a number above 0"):
        ScaleSettings(tau=tau)


def test_a_plain_network_cannot_be_scaled():
    plain = network_of(seeded(Stem))
    disguised = DecomposedNetwork(
        module=plain.module, spec=plain.spec, source_sha256=plain.source_sha256
    )
    with pytest.raises(UsageError, match="nothing to scale"):
        scale(disguised, ScaleSettings(tau=0.5))


def test_a_threshold_above_every_value_leaves_every_block_as_it_is():
    network = decompose(network_of(seeded(Stem)), DecomposeSettings())
    scaled = scale(network, ScaleSettings(tau=1e6))
    before, after = network.module.state_dict(), scaled.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(sum(counts) for counts in scaled.history[-1].notes["clamped_out_in"].values())
