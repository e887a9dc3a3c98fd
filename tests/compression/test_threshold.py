"""The clamp's threshold is the strongest of the grid that leaves the classes as they were."""

from dataclasses import replace

import pytest
import torch
from factor_networks import Stem, network_of, seeded

from edgeclean.compression.clamp import STEPS, ScaleSettings, choose_tau, scale
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.errors import UsageError
from edgeclean.networks.pixels import pixel_network


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    shape = (64, *network_of(seeded(Stem)).spec.input_shape)
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def decomposed(pixels):
    """Its classes hang on the image: a random network's mean logits would decide them alone."""
    network = network_of(seeded(Stem))
    with torch.no_grad():
        logits = pixel_network(network).eval()(pixels)
        heads = [m for m in network.module.modules() if isinstance(m, torch.nn.Linear)]
        heads[-1].bias -= logits.mean(0)
        assert len(pixel_network(network).eval()(pixels).argmax(1).unique()) > 2
    return decompose(network, DecomposeSettings())


@torch.no_grad()
def agreement(network, tau, settings, pixels) -> float:
    scaled = scale(network, replace(settings, tau=tau))
    one, other = (pixel_network(n).eval()(pixels).argmax(1) for n in (network, scaled))
    return float((one == other).double().mean())


@pytest.mark.parametrize("wanted", [0.6, 0.9, 1.0])
@pytest.mark.parametrize("s_sigma", ["max", "std"])
def test_the_chosen_tau_agrees_and_the_next_does_not(decomposed, pixels, wanted, s_sigma) -> None:
    settings = ScaleSettings(s_sigma=s_sigma, agreement=wanted)
    chosen = choose_tau(decomposed, pixels, settings)
    assert chosen == replace(settings, tau=chosen.tau)
    assert chosen.tau is not None
    if chosen.tau < 1:
        assert agreement(decomposed, chosen.tau, settings, pixels) >= wanted
    below = round(chosen.tau - 1 / STEPS, 4)
    if below > 0:
        assert agreement(decomposed, below, settings, pixels) < wanted


def test_a_laxer_agreement_never_clamps_less(decomposed, pixels) -> None:
    taus = [
        choose_tau(decomposed, pixels, ScaleSettings(agreement=wanted)).tau
        for wanted in (1.0, 0.8, 0.5, 0.2)
    ]
    assert taus == sorted(taus, reverse=True)
    assert taus[-1] < taus[0]  # else this shows nothing


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"agreement is 0\.0; it must be a number above 0"):
        ScaleSettings(agreement=0.0)
