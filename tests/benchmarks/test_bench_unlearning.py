"""NAD's attention maps and I-BAU's hypergradient, on cases worked out or differentiated by hand."""

from __future__ import annotations

import pytest
import torch
from bench_images import shade_images, tiny_network
from torch import nn

from benchmarks.defences.finetune import FinetuneSettings, finetune_clean
from benchmarks.defences.ibau import (
    IbauSettings,
    hypergradient,
    ibau,
    inner_loss,
    perturbed_rows,
    unlearning_gradient,
    worst_perturbation,
)
from benchmarks.defences.nad import (
    NadSettings,
    attention,
    attention_loss,
    find_taps,
    learning_rate,
    nad,
)
from edgeclean.errors import UsageError
from edgeclean.networks.pixels import normalize

CLEAN = shade_images(40)


def same(first, second):
    one, other = first.module.state_dict(), second.module.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one)


# NAD


def test_attention_map_by_hand():
    features = torch.tensor([[[[1.0, -2.0]], [[2.0, 0.0]]]])  # two channels, 1x2 pixels
    # sums of squares 5 and 4, norm sqrt(41)
    assert torch.allclose(attention(features, 2.0), torch.tensor([[5.0, 4.0]]) / 41**0.5)


def test_attention_ignores_the_scale_of_the_features():
    features = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(attention(features, 2.0), attention(7 * features, 2.0), atol=1e-5)


def test_taps_are_the_last_of_each_size_and_never_1x1():
    assert find_taps(tiny_network(), 3) == ("2", "6")
    assert find_taps(tiny_network(), 1) == ("6",)


def test_nad_pulls_the_attention_to_the_teachers():
    network = tiny_network()
    images = normalize(CLEAN.floats(), network.spec)
    tuned = FinetuneSettings(epochs=8, batch=20, learning_rate=0.05, padding=0, flip=False)
    teacher = finetune_clean(network, CLEAN, 0, tuned).module

    def distance(betas):
        settings = NadSettings(
            betas=betas, epochs=8, high_epochs=0, low_rate=0.01, teacher=tuned, taps=("6",)
        )
        student = nad(network, CLEAN, 0, settings).module
        maps = [attention(module[:7](images), 2.0) for module in (student, teacher)]
        return float((maps[0] - maps[1]).square().mean().detach())

    assert distance((1000.0,)) < distance((0.0,))


def test_nad_wants_a_weight_for_each_tap():
    with pytest.raises(UsageError, match="2 taps but 3 betas"):
        NadSettings(taps=("a", "b"))


def test_the_attention_loss_weighs_each_tap_by_its_beta():
    first = torch.tensor([[[[1.0, 0.0]]]])  # maps (1, 0), (0, 1) and (0.6, 0.8)
    second = torch.tensor([[[[0.0, 1.0]]]])
    third = torch.tensor([[[[3.0, 4.0]]]]).sqrt()
    loss = attention_loss([first, first], [second, third], [2.0, 30.0], 2.0)
    wanted = 2 * (1 + 1) / 2 + 30 * (0.4**2 + 0.8**2) / 2
    assert loss == pytest.approx(wanted, abs=1e-4)


def test_without_attention_nad_is_fine_tuning():
    tuned = FinetuneSettings(epochs=3, batch=20, learning_rate=0.02, padding=1)
    settings = NadSettings(
        betas=(0.0,), epochs=3, high_epochs=0, low_rate=0.02, teacher=tuned, taps=("6",)
    )
    assert same(
        nad(tiny_network(), CLEAN, 4, settings), finetune_clean(tiny_network(), CLEAN, 5, tuned)
    )


def test_with_fewer_taps_the_last_betas_count():
    tuned = FinetuneSettings(epochs=1, batch=20)
    common = {"epochs": 1, "teacher": tuned}
    found = nad(tiny_network(), CLEAN, 0, NadSettings(betas=(9.0, 500.0, 1000.0), **common))
    named = NadSettings(betas=(500.0, 1000.0), taps=("2", "6"), **common)
    assert same(found, nad(tiny_network(), CLEAN, 0, named))


def test_nads_teacher_is_a_tuned_network():
    def student(epochs):
        tuned = FinetuneSettings(epochs=epochs, batch=20)
        return nad(tiny_network(), CLEAN, 0, NadSettings(epochs=1, teacher=tuned))

    assert not same(student(0), student(3))


def test_nads_first_epochs_have_the_high_rate():
    rates = [learning_rate(epoch, NadSettings()) for epoch in range(4)]
    assert rates == [0.1, 0.1, 0.01, 0.01]


# I-BAU


def quadratic(terms):
    """Inner g = 1/2 d'Ad - d'Bw, map d - step (Ad - Bw); outer = 1/2 |d - c|^2 + p'w."""
    torch.manual_seed(0)
    square = torch.randn(4, 4, dtype=torch.float64)
    a = square @ square.T / 4 + torch.eye(4, dtype=torch.float64)
    b = torch.randn(4, 3, dtype=torch.float64)
    c, p = torch.randn(4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    w = torch.randn(3, dtype=torch.float64, requires_grad=True)
    d = torch.linalg.solve(a, b @ w).detach().requires_grad_(True)
    step = 0.2
    mapped = d - step * (a @ d - b @ w)
    outer = 0.5 * (d - c).square().sum() + p @ w
    (found,) = hypergradient(outer, mapped, d, [w], terms)
    return a, b, c, p, d.detach(), step, found


def test_hypergradient_of_many_terms_is_the_implicit_gradient():
    """dw of outer(d*(w), w) with d* = A^-1 B w: p + B' A^-1 (d - c)."""
    a, b, c, p, d, _, found = quadratic(terms=400)
    assert torch.allclose(found, p + b.T @ torch.linalg.solve(a, d - c), atol=1e-9)


@pytest.mark.parametrize("terms", [1, 2, 5])
def test_hypergradient_of_few_terms_is_their_sum(terms):
    a, b, c, p, d, step, found = quadratic(terms)
    pull = torch.eye(4, dtype=torch.float64) - step * a
    series = sum(torch.linalg.matrix_power(pull, k) @ (d - c) for k in range(terms))
    assert torch.allclose(found, p + step * b.T @ series, atol=1e-12)


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()


def noise(count, seed=1):
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed)).double()


def test_the_worst_perturbation_of_a_linear_network_is_its_gradient():
    """After one batch: rate x mean of W'(p - e), the ascent direction of the cross-entropy."""
    network, images = linear(), noise(10)
    logits = network(images).detach()
    wrong = logits.softmax(1) - nn.functional.one_hot(logits.argmax(1), 3)
    wanted = 10 * (wrong @ network[1].weight.detach()).mean(0).view(1, 3, 2, 2)
    free = worst_perturbation(network, [images], IbauSettings(radius=1e9))
    assert torch.allclose(free, wanted)
    cut = worst_perturbation(network, [images], IbauSettings(radius=0.25))
    assert torch.allclose(cut, 0.25 * wanted / wanted.norm())


def test_the_inner_loss_falls_with_the_perturbation_and_rises_with_its_price():
    network, images = linear().requires_grad_(False), noise(10)
    found = worst_perturbation(linear(), [images], IbauSettings(radius=0.25))
    free, priced = (float(inner_loss(network, found, images, price)) for price in (0.0, 0.5))
    assert free < float(inner_loss(network, 0 * found, images, 0.0))
    assert priced - free == pytest.approx(0.5 * 0.25**2)


def fixed_point(network, images, settings):
    """The perturbation that descent on the inner loss ends at (its price makes it contract)."""
    delta = torch.zeros(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    for _ in range(60):
        (slope,) = torch.autograd.grad(inner_loss(network, delta, images, settings.penalty), delta)
        delta = (delta - settings.inner_rate * slope).detach().requires_grad_(True)
    return delta.detach()


def test_the_unlearning_gradient_is_that_of_the_loss_at_the_moving_fixed_point():
    """Finite differences: weights moved, the perturbation found again, the loss computed."""
    settings = IbauSettings(penalty=2.0, inner_rate=0.1, terms=60)
    network, inner_images, images = linear(), noise(8), noise(6, seed=2)
    labels, rows = torch.arange(6) % 3, torch.tensor([1, 4, 5])

    def loss():
        perturbed = images.clone()
        perturbed[rows] += fixed_point(network, inner_images, settings)
        return float(nn.functional.cross_entropy(network(perturbed), labels).detach())

    delta = fixed_point(network, inner_images, settings)
    assert float(delta.norm()) > 0.02
    found = unlearning_gradient(network, delta, inner_images, images, labels, rows, settings)
    plain = torch.autograd.grad(
        nn.functional.cross_entropy(network(images), labels), list(network.parameters())
    )
    weight, step = network[1].weight, 1e-4
    for row, column in ((0, 0), (1, 5), (2, 11)):
        losses = []
        for moved in (step, -2 * step, step):
            with torch.no_grad():
                weight[row, column] += moved
            losses.append(loss())
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float(found[0][row, column]) == pytest.approx(slope, abs=1e-6)
        assert abs(slope - float(plain[0][row, column])) > 1e-4  # the perturbation matters


def test_the_first_step_of_ibau_is_adams_on_the_unlearning_gradient_at_the_worst_perturbation():
    """One round, one batch, all of it perturbed: each weight moves by rate x sign of its slope."""
    network, settings = tiny_network(), IbauSettings(rounds=1, batch=40, share=1.0)
    images = normalize(CLEAN.floats(), network.spec)
    module, rows = network.module.requires_grad_(True), torch.arange(40)
    worst = worst_perturbation(module, [images], settings)
    gradients = unlearning_gradient(module, worst, images, images, CLEAN.labels, rows, settings)
    outcome = ibau(network, CLEAN, 0, settings).module
    compared = 0
    for before, after, slope in zip(
        module.parameters(), outcome.parameters(), gradients, strict=True
    ):
        clear = slope.abs() > 1e-5
        wanted = (before - settings.learning_rate * slope.sign())[clear]
        assert torch.allclose(after[clear], wanted, atol=1e-5)
        compared += int(clear.sum())
    assert compared > 500


def test_some_image_is_perturbed_in_the_smallest_batch():
    generator = torch.Generator().manual_seed(0)
    assert len(perturbed_rows(20, 0.01, generator)) == 1
    assert len(perturbed_rows(500, 0.01, generator)) == 5
