"""The study of triggers sparse in frequency: each wave once, and a sine costs its amplitude."""

import math

import pytest
import torch

from benchmarks.studies.spectral import PERIODS, SpectralFamily, table, waves


def test_every_wave_is_there_once_and_none_is_constant():
    found = waves(64, 64).flatten(2)
    cosines, sines = found[:, 0], found[:, 1]
    assert len(found) == PERIODS * (2 * PERIODS + 1) + PERIODS
    products = cosines @ cosines.T + sines @ sines.T
    assert torch.allclose(products, 64 * 64 * torch.eye(len(found)), atol=0.1)
    assert found.mean(2).abs().max() < 1e-4


@pytest.mark.parametrize("phase", [0.0, 0.7, 2.0])
def test_a_sine_costs_its_amplitude_whatever_its_phase(phase):
    family = SpectralFamily(2, (1, 32, 32), torch.Generator().manual_seed(0))
    (amplitudes,) = family.parameters()
    with torch.no_grad():
        amplitudes.zero_()
        amplitudes[1, 0, 40] = 0.1 * torch.tensor([math.cos(phase), math.sin(phase)])
    costs = family.cost().detach()
    assert float(costs[1] - costs[0]) == pytest.approx(25.5, rel=1e-3)
    delta = family.trigger(1).delta
    assert float(delta.square().mean().sqrt()) == pytest.approx(0.1 / math.sqrt(2), rel=1e-3)


def test_the_table_sets_the_true_class_apart_from_the_highest_other():
    searched = {"scores": [0.5, 3.0, -1.0], "threshold": 2.6, "costs": [1, 2, None]}
    cell = {"network": "n", "seed": 1, "spectral": searched | {"processor_s": 2.0}}
    cell["additive"] = searched | {"processor_s": 1.4}
    rows = table({"a": cell | {"true_target": 1}, "b": cell | {"true_target": None}}).splitlines()
    assert rows[2] == "| n | 1 | 1 | 2.6 | 3.0, 0.5 | 3.0, 0.5 | 2, 1 |"
    assert rows[3] == "| n | 1 | - | 2.6 | -, 3.0 | -, 3.0 | 2, 1 |"
