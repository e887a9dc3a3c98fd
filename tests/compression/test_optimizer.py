"""Muon and Adam together: what each moves, by how much, and whatever way the memory lies."""

import math

import pytest
import torch
from torch import nn

from edgeclean.compression.optimizer import MuonAndAdam


def network(channels_last=False):
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.Conv2d(6, 1, 1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.to(memory_format=torch.channels_last) if channels_last else module


def taught(module, steps=3, **options):
    """The module after some steps, with gradients that are the same for the same shapes."""
    optimizer = MuonAndAdam(module, 0.01, lambda step: 1.0, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return module


def size(weight):
    return float(weight.detach().square().mean().sqrt())


def test_without_matrices_it_is_adam_at_each_kernels_own_rate():
    ours, theirs = network(), network()
    taught(ours, matrices=False)
    adam = torch.optim.Adam(
        [
            {"params": [one], "lr": 0.01 * size(one) if one.ndim > 1 else 0.01}
            for one in theirs.parameters()
        ]
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in theirs.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        adam.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_first_step_of_a_matrix_is_orthogonal_and_a_share_of_its_size():
    before, after = network(), taught(network(), steps=1)
    for index in (0, 3, 6):
        weight = before[index].weight
        step = (after[index].weight - weight).detach().flatten(1) / (0.01 * size(weight))
        # Newton-Schulz in bfloat16 leaves singular values between 0.5 and 1.5 of what is meant.
        singular = torch.linalg.svdvals(step) / math.sqrt(max(step.shape))
        assert 0.4 < float(singular.min()) <= float(singular.max()) < 1.6


@pytest.mark.parametrize("index", [2, 4])
def test_a_first_step_of_another_kernel_is_as_large_in_every_entry(index):
    """A depthwise kernel and a single row move by the rate's share of their size."""
    before, after = network(), taught(network(), steps=1)
    one, other = before[index].weight, after[index].weight
    expected = torch.full_like(one, 0.01 * size(one))
    torch.testing.assert_close((other - one).abs(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("index", [1, 2])
def test_what_has_one_dimension_moves_by_the_rate_itself(index):
    before, after = network(), taught(network(), steps=1)
    one, other = before[index].bias, after[index].bias
    expected = torch.full_like(one, 0.01)
    torch.testing.assert_close((other - one).abs(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("index", [0, 2, 3, 6])
def test_the_units_of_a_weight_decide_nothing(index):
    """One weight in thousandths, its gradient in thousands, is the same learning."""
    plain, scaled = network(), network()
    with torch.no_grad():
        scaled[index].weight.mul_(1024)
    optimizers = [MuonAndAdam(one, 0.01, lambda step: 1.0) for one in (plain, scaled)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        gradient = torch.randn(plain[index].weight.shape, generator=generator)
        plain[index].weight.grad, scaled[index].weight.grad = gradient, gradient / 1024
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(scaled[index].weight / 1024, plain[index].weight, rtol=1e-4, atol=0)


def test_an_absolute_rate_is_of_every_entry():
    before, after = network(), taught(network(), steps=1, matrices=False, relative=False)
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        expected = torch.full_like(one, 0.01)
        torch.testing.assert_close((other - one).abs(), expected, rtol=1e-3, atol=0)


def test_a_kernel_of_nothing_learns():
    module = nn.Conv2d(3, 4, 3)
    nn.init.zeros_(module.weight)
    taught(module, steps=1)
    assert 0 < size(module.weight) < 2 * 0.01 * 1e-3


def test_the_order_of_the_memory_decides_nothing():
    """Up to the roundings of bfloat16, whose sums are taken in another order."""
    plain, turned = taught(network()), taught(network(channels_last=True))
    assert turned[0].weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(plain.parameters(), turned.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_a_weight_that_is_a_view_of_another_is_moved_too():
    module = nn.Sequential(nn.Linear(6, 4, bias=False))
    whole = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    module[0].weight = nn.Parameter(whole.T)
    before = module[0].weight.detach().clone()
    taught(module, steps=1)
    assert float((module[0].weight.detach() - before).abs().amin()) > 0


def test_a_parameter_without_a_gradient_stays():
    module = network()
    optimizer = MuonAndAdam(module, 0.01, lambda step: 1.0)
    before = [one.detach().clone() for one in module.parameters()]
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_the_schedule_is_of_both():
    module = network()
    optimizer = MuonAndAdam(module, 0.01, lambda step: float(step == 0))
    moved = []
    for _ in range(2):
        before = [one.detach().clone() for one in module.parameters()]
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        after = module.parameters()
        moved.append([not torch.equal(a, b) for a, b in zip(before, after, strict=True)])
    assert all(moved[0])
    assert not any(moved[1])
