"""Laws of the BatchNorm statistics: fused moments, distance, re-estimation."""

import pytest
import torch
from tiny_networks import tiny_network, tiny_pixels
from torch import nn

from edgeclean.images.batchnorm import (
    BatchMoments,
    StatisticsDistance,
    batchnorm_layers,
    reestimate_batchnorm_,
    running_batchnorm_layers,
)
from edgeclean.networks.pixels import pixel_network


def test_fused_moments_and_their_gradient_equal_the_plain_ones():
    values = torch.randn(5, 3, 4, 6, dtype=torch.float64).requires_grad_()
    again = values.detach().clone().requires_grad_()
    mean, variance = BatchMoments.apply(values)
    plain_mean, plain_variance = again.mean((0, 2, 3)), again.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(mean, plain_mean)
    torch.testing.assert_close(variance, plain_variance)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (mean * weight + variance.square() * weight).sum().backward()
    (plain_mean * weight + plain_variance.square() * weight).sum().backward()
    torch.testing.assert_close(values.grad, again.grad)


def test_moments_of_bfloat16_are_summed_in_float32():
    generator = torch.Generator().manual_seed(0)
    values = (3 + torch.randn(64, 4, 16, 16, generator=generator)).bfloat16()
    values = values.contiguous(memory_format=torch.channels_last)
    mean, variance = BatchMoments.apply(values)
    assert mean.dtype == variance.dtype == torch.float32
    exact = values.double()
    # 16,384 values: bfloat16 sums would be off by its step at 3, about 0.01.
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3)), rtol=0, atol=1e-5)
    wanted = exact.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(variance.double(), wanted, rtol=0, atol=1e-3)


def test_distance_is_zero_for_the_remembered_batch_and_listens_to_inputs():
    network = tiny_network()
    module, pixels = pixel_network(network), tiny_pixels(32)
    for layer in batchnorm_layers(module):
        layer.momentum = 1.0
    module.train()
    module(pixels)  # each layer remembers this batch; running_var keeps the unbiased variance
    module.eval()
    with StatisticsDistance(module) as statistics, torch.no_grad():
        module(pixels)
        own = float(statistics.distance())
        module(1 - pixels)
        other = float(statistics.distance())
    assert own < 1e-4 < other


def test_distance_is_of_means_and_deviations_in_units_of_the_running_deviation():
    pixels = tiny_pixels(16)
    wide, narrow = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    module = nn.Sequential(wide, narrow).eval()
    terms = []
    for layer, mean, variance in ((wide, 3.0, 4.0), (narrow, -0.2, 0.25)):
        layer.running_mean.fill_(mean)
        layer.running_var.fill_(variance)
    with StatisticsDistance(module) as statistics, torch.no_grad():
        after = module(pixels)
        found = float(statistics.distance())
        for layer, inputs in ((wide, pixels), (narrow, wide(pixels))):
            deviation = layer.running_var.sqrt()
            terms.append(((inputs.mean((0, 2, 3)) - layer.running_mean) / deviation).square())
            terms.append((inputs.std((0, 2, 3), correction=0) / deviation - 1).square())
    assert after.isfinite().all()
    assert all(float(term.mean()) > 0.1 for term in terms)  # each of the four matters
    assert found == pytest.approx(2 * float(torch.stack(terms).mean()), rel=1e-3)


def test_reestimation_equals_the_statistics_of_all_images():
    network = tiny_network()
    module, pixels = pixel_network(network), tiny_pixels(64)
    first = batchnorm_layers(module)[0]
    convolution = nn.Sequential(module[0], module[1][0])
    with torch.no_grad():
        inputs = convolution(pixels)
    reestimate_batchnorm_(module, pixels, batch_size=64)
    # bfloat16 activations carry 8 bits: 2^-8 of their size
    scale = float(inputs.abs().amax())
    torch.testing.assert_close(first.running_mean, inputs.mean((0, 2, 3)), rtol=0, atol=scale / 256)
    torch.testing.assert_close(first.running_var, inputs.var((0, 2, 3)), rtol=0.05, atol=1e-3)
    assert not first.training
    assert first.momentum == pytest.approx(0.1)


class Auxiliary(nn.Module):
    """A trunk whose BatchNorm is called by name, and a head that evaluation never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.head_norm = nn.BatchNorm2d(3)  # registered first, so that no place in a list fits
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels):
        seen = self.norm(input=pixels)
        return (seen, self.head_norm(pixels)) if self.training else seen


def test_layers_that_evaluation_does_not_run_say_nothing_and_keep_their_statistics():
    module, pixels = Auxiliary().eval(), tiny_pixels(32)
    module.head_norm.running_mean.fill_(7)
    module.head_norm.running_var.fill_(5)
    assert running_batchnorm_layers(module, pixels) == [module.norm]
    alone = nn.Sequential(nn.BatchNorm2d(3)).eval()
    distances = []
    for one in (module, alone):
        with StatisticsDistance(one) as statistics, torch.no_grad():
            one(pixels)
            distances.append(float(statistics.distance()))
    assert distances[0] == distances[1] > 0
    before = {name: value.clone() for name, value in module.head_norm.state_dict().items()}
    reestimate_batchnorm_(module, pixels)
    assert all(torch.equal(v, before[n]) for n, v in module.head_norm.state_dict().items())
    assert module.head_norm.momentum == pytest.approx(0.1)
    assert not module.head_norm.training
    torch.testing.assert_close(module.norm.running_mean, pixels.mean((0, 2, 3)))


def test_a_network_without_batchnorm_has_nothing_to_set_anew():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    reestimate_batchnorm_(module, torch.rand(4, 3, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
