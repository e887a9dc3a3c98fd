"""Hidden channels are found from the graph alone, cut with all that belongs to them, or left."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from unit_networks import ACTIVATIONS, KINDS, Drawn, as_network, drawn_network, through_onnx

from edgeclean.compression.units import cut_, find_units
from edgeclean.networks.layers import trace_layers

DRAWN = st.builds(
    Drawn,
    kind=st.sampled_from(KINDS),
    hidden=st.sampled_from([16, 24, 40]),
    image=st.sampled_from([(3, 8, 8), (1, 8, 8), (3, 6, 10), (1, 10, 6)]),
    norm=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    seed=st.integers(0, 10**6),
)


def units_of(network, keep=()):
    layers = trace_layers(network.module, network.spec.input_shape)
    by_name = {layer.name: layer for layer in layers}
    return find_units(network.module, by_name, network.spec.input_shape, keep=keep)


def outputs(module, network):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        return module(torch.randn(3, *network.spec.input_shape, generator=generator))


def hidden_units(network):
    """Those inside of blocks: the stream between blocks is one of 16 channels."""
    return [unit for unit in units_of(network) if unit.channels != 16 or unit.spread > 1]


@settings(max_examples=20, deadline=None)
@given(drawn=DRAWN)
def test_every_kind_of_block_has_its_hidden_channels(drawn):
    check_units(drawn, drawn_network(drawn))


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("squeeze", "silu"),
        pytest.param("basic", "prelu", marks=pytest.mark.slow),
        pytest.param("chain", "hardswish", marks=pytest.mark.slow),
    ],
)
def test_a_graph_from_onnx_has_the_same(kind, activation):
    drawn = Drawn(kind=kind, activation=activation, image=(1, 6, 10))
    check_units(drawn, through_onnx(drawn_network(drawn)))


def check_units(drawn, network):
    blocks = 1 if drawn.kind == "chain" else 2
    expected = {"bottleneck": 2, "chain": 2}.get(drawn.kind, 1) * blocks
    found = [unit for unit in units_of(network) if unit.channels == drawn.hidden]
    assert len(found) == expected
    if drawn.kind == "squeeze":
        assert all(len(unit.squeezes) == len(unit.gates) == 1 for unit in found)
    if drawn.kind == "chain":
        assert {unit.spread for unit in found} == {1, network.spec.input_shape[1] // 2 * (
            network.spec.input_shape[2] // 2
        )}  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(drawn=DRAWN, seed=st.integers(0, 10**6))
def test_channels_can_be_put_in_another_order(drawn, seed):
    network = drawn_network(drawn)
    changed = copy.deepcopy(network.module)
    generator = torch.Generator().manual_seed(seed)
    for unit in units_of(network):
        cut_(changed, unit, torch.randperm(unit.channels, generator=generator))
    expected = outputs(network.module, network)
    assert torch.allclose(outputs(changed, network), expected, atol=1e-4, rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(drawn=DRAWN)
def test_unread_channels_can_go(drawn):
    """The consumer multiplies them by zero, so that nothing changes: not even a squeeze's."""
    network = drawn_network(drawn)
    changed = network.module
    units = units_of(network)
    with torch.no_grad():
        for unit in units:
            for name in unit.readers:
                weight = changed.get_submodule(name).weight
                gone = torch.arange(unit.channels // 2, unit.channels)
                unread = unit.entries(gone, weight[0].numel())
                weight.view(len(weight), -1)[:, unread] = 0
    expected = outputs(changed, network)
    for unit in units:
        cut_(changed, unit, torch.arange(unit.channels // 2))
    assert torch.allclose(outputs(changed, network), expected, atol=1e-4, rtol=1e-3)
    layers = {one.name: one for one in trace_layers(changed, network.spec.input_shape)}
    for unit in units:
        assert layers[unit.producer].weight_shape[0] == unit.channels // 2


def test_what_is_kept_keeps_its_unit():
    network = drawn_network(Drawn(kind="inverted"))
    every = hidden_units(network)
    for name in every[0].modules:
        left = units_of(network, keep=(name,))
        assert every[0].producer not in {unit.producer for unit in left}
        assert every[1].producer in {unit.producer for unit in left}


class Odd(nn.Module):
    """One way in which hidden channels are no unit, or only look like one."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.last = nn.Conv2d(32 if way == "concat" else 16, 12, 1)
        self.other = nn.Conv2d(3, 16, 1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm = nn.GroupNorm(4, 16)
        self.layer_norm = nn.LayerNorm([16, 8, 8])
        self.scale = nn.Parameter(torch.ones(16, 8, 8))
        self.last.weight.data.normal_()
        self.head = nn.Linear(12, 5)

    def forward(self, images):
        hidden = torch.relu(self.first(images))
        match self.way:
            case "residual":
                hidden = hidden + self.other(images)
            case "concat":
                hidden = torch.cat([hidden, self.other(images)], 1)
            case "grouped":
                hidden = self.grouped(hidden)
            case "groupnorm":
                hidden = self.norm(hidden)
            case "layernorm":
                hidden = self.layer_norm(hidden)
            case "softmax":
                hidden = hidden.softmax(1)
            case "shuffle":
                hidden = hidden.view(-1, 4, 4, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8)
            case "slice":
                hidden = torch.cat([hidden[:, 8:], hidden[:, :8]], 1)
            case "map":
                hidden = hidden * self.scale
            case "twice":
                hidden = hidden + torch.relu(self.first(images))
            case "branches":
                return self.head(
                    self.last(hidden).mean((2, 3)) + self.last(2 * hidden).amax((2, 3))
                )
            case "bound":
                hidden = hidden.view(-1, 16, 64).view(-1, 16, 8, 8)
            case "mean":
                hidden = hidden - hidden.mean(1, keepdim=True)
            case "weights":
                hidden = hidden * self.first.weight.mean((1, 2, 3))[None, :, None, None]
            case "output":
                return hidden.mean((2, 3))
        return self.head(self.last(hidden).mean((2, 3)))


@pytest.mark.parametrize(
    "way",
    [
        *("residual", "concat", "grouped", "groupnorm", "layernorm", "softmax", "shuffle"),
        *("slice", "map", "twice", "branches", "bound", "mean", "weights", "output"),
    ],
)
def test_what_the_graph_cannot_prove_stays_out(way):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = as_network(Odd(way), (3, 8, 8))
    found = {unit.producer for unit in units_of(network)}
    assert "first" not in found
    assert "other" not in found


def test_a_plain_one_of_the_same_is_found():
    network = as_network(Odd("none"), (3, 8, 8))
    assert {unit.producer for unit in units_of(network)} == {"first", "last"}


class Scale(nn.Module):
    """A factor and a shift for each channel, one as a parameter and one as a buffer."""

    def __init__(self, channels):
        super().__init__()
        self.factor = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)
        self.register_buffer("shift", torch.rand(channels, 1, 1))

    def forward(self, planes):
        return torch.maximum(planes * self.factor + self.shift, planes.amin((2, 3), keepdim=True))


def test_all_that_keeps_channels_apart_is_cut_along():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        steps = [
            *(nn.Conv2d(1, 16, 3, padding="same"), nn.BatchNorm2d(16, affine=False), nn.PReLU(16)),
            *(Scale(16), nn.ZeroPad2d(1), nn.AvgPool2d(2), nn.Upsample(scale_factor=2.0)),
            *(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Hardtanh(), nn.ReflectionPad2d(1)),
            *(nn.MaxPool2d(3, 1), nn.Dropout2d(), nn.GELU(), nn.Conv2d(16, 12, 3)),
            *(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(24, 5)),
        ]
    network = as_network(nn.Sequential(*steps), (1, 9, 7))
    (unit, last) = units_of(network)
    assert (unit.producer, unit.consumer, unit.channels) == ("0", "13", 16)
    assert {one.module for one in unit.held} == {"1", "2", "3", "7"}
    assert (last.consumer, last.spread) == ("16", 2)
    expected = outputs(network.module, network)
    changed = copy.deepcopy(network.module)
    for one in (unit, last):
        cut_(changed, one, torch.arange(one.channels).flip(0))
    assert torch.allclose(outputs(changed, network), expected, atol=1e-5)
    cut_(changed, unit, torch.arange(5))
    assert outputs(changed, network).shape == expected.shape
    assert changed[2].num_parameters == changed[7].groups == changed[1].num_features == 5


def test_one_that_cannot_be_cut_leaves_the_others():
    class Bound(nn.Module):
        def forward(self, planes):
            return planes.view(-1, 16, 64).view(-1, 16, 8, 8)

    steps = [nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU()]
    steps += [nn.Conv2d(24, 16, 1), Bound(), nn.Conv2d(16, 40, 1), nn.ReLU(), nn.Conv2d(40, 8, 1)]
    steps += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = as_network(nn.Sequential(*steps), (3, 8, 8))
    assert [unit.producer for unit in units_of(network)] == ["0", "2", "6", "8"]


def test_a_layer_with_two_readers_or_two_names_stays():
    class Two(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3)
            self.one, self.two = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
            if shared:
                self.two = self.one
            self.head = nn.Linear(8, 5)

        def forward(self, images):
            hidden = self.first(images)
            return self.head((self.one(hidden) + self.two(hidden)).mean((2, 3)))

    for shared in (False, True):
        assert units_of(as_network(Two(shared), (3, 8, 8))) == ()


def test_finding_leaves_the_network_as_it_was():
    network = drawn_network(Drawn(kind="squeeze"))
    network.module.train()
    before = copy.deepcopy(network.module.state_dict())
    units_of(network)
    assert network.module.training
    for key, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, before[key]), key
