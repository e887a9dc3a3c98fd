"""Kernels as a Kx1 and a 1xK convolution: what they compute, cost and lose, and how one is chosen."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from factor_networks import network_of, seeded, some_images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.factorisation import (
    AXES,
    Separable,
    SeparableKernel,
    cost_of,
    factors_of,
    full_separable_rank,
    merge_block,
    part_shapes,
)
from edgeclean.compression.plan import RankPlan, choose_ranks
from edgeclean.compression.separable import SeparableFit
from edgeclean.compression.settings import RankSettings
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.measure.block_backends import chain_module
from edgeclean.networks.blocks import is_block
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.layers import trace_layers
from edgeclean.networks.shapes import conv_shape
from edgeclean.networks.state import LoadedNetwork
from exporters.onnx_exporter import export_onnx

BOTH = ("tucker", "separable")


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Convolutions with taps on both sides, of every stride, padding and dilation."""
    sides = st.tuples(st.integers(2, 4), st.integers(2, 4))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    paddings = [st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")]
    if stride == (1, 1):
        paddings.append(st.just("same"))
    made = {
        "kernel_size": draw(sides),
        "stride": stride,
        "padding": draw(st.one_of(paddings)),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "bias": draw(st.booleans()),
    }
    channels = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 8]))
    return seeded(lambda: nn.Conv2d(*channels, **made), draw(st.integers(0, 99))).double()


def moment_of(conv: nn.Conv2d, seed: int = 0) -> Tensor:
    """Of correlated patches."""
    size = conv.weight[0].numel()
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    mix = mix * torch.logspace(0, -1, size, dtype=torch.float64)
    return mix @ mix.T / size


@settings(max_examples=80, deadline=None)
@given(conv=convolutions(), first=st.sampled_from(AXES), fitted=st.booleans())
def test_at_full_rank_it_is_the_convolution_and_costs_what_its_parts_cost(conv, first, fitted):
    image = torch.randn(2, conv.in_channels, 11, 9, dtype=torch.float64)
    shape = conv_shape(conv, (11, 9))
    full = full_separable_rank(shape, first)
    moment = moment_of(conv) if fitted else None
    fit = SeparableFit(conv.weight, first, most=full, moment=moment, ridge=0.01)
    assert fit.loss(full) == pytest.approx(0, abs=1e-9)
    kernel = fit.at(full)
    assert kernel.ranks == Separable(first=first, rank=full)
    block = kernel.to_block(conv)
    with torch.no_grad():
        expected = conv(image)
        torch.testing.assert_close(block(image), expected, rtol=0, atol=1e-8)
        torch.testing.assert_close(merge_block(block)(image), expected, rtol=0, atol=1e-8)
    assert is_block(block)
    assert type(factors_of(block)) is SeparableKernel
    parts = part_shapes(shape, kernel.ranks)
    assert chain_module(parts).double()(image).shape == expected.shape
    weights = count_params(block) - (conv.out_channels if conv.bias is not None else 0)
    macs = count_macs(block, tuple(image.shape[1:]))
    assert cost_of([shape], kernel.ranks) == (weights, macs)
    (layer,) = trace_layers(nn.Sequential(block), tuple(image.shape[1:]))
    assert (layer.shapes, layer.weight_shape) == ((shape,), tuple(conv.weight.shape))
    assert layer.macs == macs


@settings(max_examples=40, deadline=None)
@given(conv=convolutions(), first=st.sampled_from(AXES), choice=st.data())
def test_a_sum_of_outer_products_is_found_at_its_rank(conv, first, choice):
    """With any moment: what a kernel is made of is what it needs."""
    full = full_separable_rank(conv_shape(conv, (9, 9)), first)
    rank = choice.draw(st.integers(1, full))
    made = SeparableFit(conv.weight, first, most=full).at(rank).kernel()
    for moment in (None, moment_of(conv)):
        fit = SeparableFit(made, first, most=rank, moment=moment, ridge=0.01)
        assert fit.loss(rank) == pytest.approx(0, abs=1e-9)
        torch.testing.assert_close(fit.at(rank).kernel(), made, rtol=0, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(conv=convolutions(), first=st.sampled_from(AXES), most=st.integers(1, 30))
def test_the_loss_is_the_energy_that_is_lost(conv, first, most):
    """Of the outputs with a moment, of the weights without; whatever the highest rank asked for."""
    matrix = conv.weight.detach().flatten(1)
    full = full_separable_rank(conv_shape(conv, (9, 9)), first)
    for moment in (None, moment_of(conv)):
        fit = SeparableFit(conv.weight, first, most=min(most, full), moment=moment, ridge=1e-9)
        weigh = torch.eye(matrix.shape[1], dtype=torch.float64) if moment is None else moment
        total = float(((matrix @ weigh) * matrix).sum())
        losses = []
        for rank in range(1, min(most, full) + 1):
            gap = matrix - fit.at(rank).kernel().flatten(1)
            losses.append(fit.loss(rank))
            assert losses[-1] == pytest.approx(float(((gap @ weigh) * gap).sum()) / total, abs=1e-6)
        assert losses == sorted(losses, reverse=True)


def test_the_loss_of_the_weights_is_the_least_there_is():
    conv = seeded(lambda: nn.Conv2d(4, 6, (3, 2))).double()
    for first, regrouped in (
        ("vertical", conv.weight.permute(1, 2, 0, 3).reshape(12, 12)),
        ("horizontal", conv.weight.permute(1, 3, 0, 2).reshape(8, 18)),
    ):
        energies = torch.linalg.svdvals(regrouped.detach()).square()
        fit = SeparableFit(conv.weight, first, most=8)
        for rank in range(1, 9):
            left = float(energies[rank:].sum() / energies.sum())
            assert fit.loss(rank) == pytest.approx(left, abs=1e-9)


def test_inputs_and_weights_that_are_zero_still_give_kernels():
    conv = nn.Conv2d(3, 4, 3).double()
    zeros = torch.zeros(27, 27, dtype=torch.float64)
    fit = SeparableFit(conv.weight, "vertical", most=3, moment=zeros, ridge=0.01)
    assert bool(torch.isfinite(fit.at(3).kernel()).all())
    nn.init.zeros_(conv.weight)
    for moment in (None, zeros):
        fit = SeparableFit(conv.weight, "horizontal", most=3, moment=moment, ridge=0.01)
        assert fit.loss(1) == 0
        assert not bool(fit.at(1).kernel().any())


class Wide(nn.Module):
    """Strided, dilated, even and flat kernels, and one that pads by reflection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 24, 3, stride=(2, 1), padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.even = nn.Conv2d(24, 16, (2, 4), padding="same", dilation=(2, 1))
        self.flat = nn.Conv2d(16, 16, (3, 1), padding=(1, 0))
        self.mirror = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.down(torch.relu(self.stem(images)))))
        features = torch.relu(self.mirror(self.flat(torch.relu(self.even(features)))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def wide() -> LoadedNetwork:
    return network_of(seeded(Wide))


def separable_layers(plan: RankPlan) -> dict[str, Separable]:
    ranks = {layer.layer: layer.ranks for layer in plan.layers}
    return {name: one for name, one in ranks.items() if isinstance(one, Separable)}


@pytest.mark.parametrize("images", [None, some_images()])
@pytest.mark.parametrize("asked", [{"ratio": 1.8}, {"ratio": 2.0, "measure": "params"}])
def test_a_plan_of_separable_kernels_goes_through_to_onnx(images, asked):
    network = decompose(wide(), DecomposeSettings())
    plan = choose_ranks(network, RankSettings(forms=("separable",), **asked), images=images)
    chosen = separable_layers(plan)
    assert chosen
    assert set(chosen) <= {"stem", "down", "even"}
    assert {layer.layer for layer in plan.layers if layer.ranks} == set(chosen)
    truncated = truncate(network, plan, TruncateSettings())  # which holds the cost to the plan's
    assert plan.ratio >= asked["ratio"]
    for name, ranks in chosen.items():
        block = truncated.module.get_submodule(name)
        assert is_block(block)
        assert factors_of(block).ranks == ranks
    pixels = torch.rand(2, 3, 16, 16)
    session = onnxruntime.InferenceSession(
        export_onnx(truncated), providers=["CPUExecutionProvider"]
    )
    (given_back,) = session.run(None, {session.get_inputs()[0].name: pixels[:1].numpy()})
    from edgeclean.networks.pixels import pixel_network

    with torch.no_grad():
        expected = pixel_network(truncated).eval()(pixels[:1])
    np.testing.assert_allclose(given_back, expected.numpy(), atol=1e-4)
