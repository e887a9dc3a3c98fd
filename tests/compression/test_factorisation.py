"""One description of a factored convolution: its weights, its parts, their cost."""

import itertools

import pytest
import torch
from factor_networks import seeded
from torch import nn

from edgeclean.compression.factorisation import Factorisation, cost_of, part_shapes
from edgeclean.compression.fit import WeightFit
from edgeclean.compression.rank_grids import measured_grid, rank_steps
from edgeclean.compression.tucker import factorise
from edgeclean.measure.block_backends import chain_module
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.networks.shapes import conv_shape


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 12, 3, padding=1, stride=2),
        nn.Conv2d(8, 12, (1, 4), padding="same", dilation=(1, 2)),
        nn.Conv2d(8, 12, 5, padding="valid"),
        nn.Conv2d(24, 16, 1, stride=2),
    ],
)
def test_a_shape_knows_its_layers_output_and_parts_cost(conv):
    shape = conv_shape(conv, (13, 9))
    image = torch.zeros(1, conv.in_channels, 13, 9)
    assert shape.image_out == tuple(conv(image).shape[2:])
    assert cost_of([shape], None) == (conv.weight.numel(), count_macs(conv, tuple(image.shape[1:])))
    fit = WeightFit(factorise(conv.weight), (conv.out_channels, conv.in_channels))
    for ranks in [(8, 8)] if shape.pointwise else [(4, 4), (12, 4), (4, 8)]:
        block = fit.at(ranks).to_block(conv)
        parts = part_shapes(shape, ranks)
        assert len(parts) == len(block)
        weights = count_params(block) - conv.out_channels  # all but the bias
        assert cost_of([shape], ranks) == (weights, count_macs(block, tuple(image.shape[1:])))
        assert chain_module(parts)(image).shape == conv(image).shape


def test_a_layer_that_runs_twice_has_its_weights_once():
    first, second = (conv_shape(nn.Conv2d(8, 12, 3), image) for image in ((9, 9), (5, 5)))
    params, macs = cost_of([first, second], (4, 4))
    assert params == cost_of([first], (4, 4))[0]
    assert macs == cost_of([first], (4, 4))[1] + cost_of([second], (4, 4))[1]


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_block_has_the_weights_that_it_was_made_of(kernel):
    conv = seeded(lambda: nn.Conv2d(6, 8, kernel))
    weights = factorise(conv.weight).truncated(4, 4)
    back = Factorisation.from_block(weights.to_block(conv))
    assert back.ranks == (4, 4)
    for name in ("core", "factor_out", "factor_in"):
        torch.testing.assert_close(getattr(back, name), getattr(weights, name), rtol=0, atol=1e-6)


def test_one_convolution_is_no_block():
    conv = nn.Conv2d(6, 8, 3)
    with pytest.raises(ValueError, match="is one convolution, not a block"):
        Factorisation(core=conv.weight.detach()).to_block(conv)


def test_layers_that_run_twice_or_never_have_no_one_shape():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice, self.never = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, images):
            return self.twice(self.twice(self.once(input=images)))

    assert set(conv_shapes(trace_layers(Odd(), (3, 5, 7)))) == {"once"}


def test_only_ranks_that_save_a_tenth_are_measured():
    shape = conv_shape(nn.Conv2d(64, 128, 3, padding=1, stride=2), (14, 14))
    grid = measured_grid(shape)
    assert len(grid) == len(set(grid)) > 10
    for ranks in grid:
        params, macs = cost_of([shape], ranks)
        assert params <= 0.9 * shape.params
        assert macs <= 0.9 * shape.macs


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 16, 24, 64, 100, 512, 2048])
def test_rank_steps_rise_to_all_channels_by_an_eighth(channels):
    steps = rank_steps(channels)
    assert steps[-1] == channels
    assert all(
        low < high <= max(low + 16, 1.125 * low + 8) for low, high in itertools.pairwise(steps)
    )
