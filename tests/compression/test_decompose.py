import copy
import itertools
from collections import OrderedDict

import pytest
import torch
from exhaustive import exhaustive
from factor_networks import Stem, network_of, seeded
from torch import nn
from zoo import ZOO_NAMES, accuracy, cifar10_test_images, needs_images, needs_zoo, zoo_network

from edgeclean.compression.decompose import DecomposeSettings, decompose, factored_block
from edgeclean.compression.factorisation import Factorisation, merge_block, merged_module
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.networks.blocks import is_block
from edgeclean.networks.layers import trace_layers, with_layers

GEOMETRIES = [
    {"kernel_size": k, "stride": s, "padding": p, "dilation": d, "bias": b}
    for k, s, p, d, b in itertools.chain(
        itertools.product(
            [3, (3, 1), (2, 5)], [1, (2, 1)], [0, (1, 2)], [1, (1, 2)], [True, False]
        ),
        itertools.product([1], [1, 2], [0, 1], [1], [True, False]),
        [(3, 1, "same", 2, True), ((2, 5), 1, "same", 1, True), (3, 2, "valid", 1, False)],
    )
]


# torch's own remark on padding="same" with an even kernel
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels", [(6, 8), (3, 32), (9, 4)], ids=str)
def test_full_rank_block_is_the_convolution(geometry, channels):
    conv = seeded(lambda: nn.Conv2d(*channels, **geometry)).double()
    images = torch.randn(
        2, channels[0], 11, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    block = factored_block(conv)
    assert is_block(block)
    torch.testing.assert_close(block(images), conv(images), rtol=0, atol=1e-10)
    merged = merge_block(block)
    torch.testing.assert_close(merged.weight, conv.weight, rtol=0, atol=1e-10)
    assert merged.extra_repr() == conv.extra_repr()
    torch.testing.assert_close(merged(images), conv(images), rtol=0, atol=1e-10)


def test_block_is_made_of_stock_convolutions_with_fixed_names():
    block = factored_block(seeded(lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1)))
    assert type(block) is nn.Sequential
    assert [name for name, _ in block.named_children()] == ["reduce", "core", "expand"]
    assert {type(layer) for layer in block} == {nn.Conv2d}
    assert [layer.stride for layer in block] == [(1, 1), (2, 2), (1, 1)]
    assert [layer.bias is not None for layer in block] == [False, False, True]
    point = factored_block(seeded(lambda: nn.Conv2d(6, 8, 1, stride=2)))
    assert [name for name, _ in point.named_children()] == ["reduce", "expand"]
    assert point.reduce.stride == (2, 2)


def test_making_blocks_draws_no_random_numbers():
    conv = seeded(lambda: nn.Conv2d(6, 8, 3))
    before = torch.random.get_rng_state()
    merge_block(factored_block(conv))
    assert torch.equal(before, torch.random.get_rng_state())


def test_rows_of_a_pointwise_reduce_carry_the_singular_values():
    conv = seeded(lambda: nn.Conv2d(6, 9, 1)).double()
    block = factored_block(conv)
    torch.testing.assert_close(
        block.reduce.weight.flatten(1).norm(dim=1),
        torch.linalg.svdvals(conv.weight[..., 0, 0]),
        rtol=0,
        atol=1e-8,
    )
    assert Factorisation.from_block(block).core.shape == (6, 6, 1, 1)


@pytest.mark.parametrize(
    "layers",
    [
        {"0": nn.Conv2d(3, 3, 1), "1": nn.Conv2d(3, 3, 1)},
        {"reduce": nn.Conv2d(3, 3, 1), "expand": nn.Conv2d(3, 3, 3)},
        {"reduce": nn.Conv2d(3, 3, 1), "expand": nn.Conv2d(3, 3, 1, stride=2)},
        {"reduce": nn.Conv2d(3, 3, 1), "expand": nn.ReLU()},
        {"reduce": nn.Conv2d(3, 3, 1), "core": nn.Conv2d(3, 3, 3, groups=3, bias=False)},
        {"core": nn.Conv2d(3, 3, 3), "expand": nn.Conv2d(3, 3, 1)},  # a bias before the last
    ],
    ids=str,
)
def test_other_sequences_are_no_blocks(layers):
    module = nn.Sequential(OrderedDict(layers))
    assert not is_block(module)
    with pytest.raises(ValueError, match="only a block"):
        merge_block(module)


def test_decompose_replaces_what_is_eligible_and_says_why_the_rest_stays():
    source = network_of(seeded(Stem))
    untouched = copy.deepcopy(source.module.state_dict())
    decomposed = decompose(source, DecomposeSettings())
    layers = {layer["name"]: layer for layer in decomposed.history[-1].notes["layers"]}
    reasons = {name: layer["reason"] for name, layer in layers.items()}
    assert reasons == {
        "stem": "",
        "depthwise": "depthwise",
        "grouped": "grouped (4 groups)",
        "point": "",
        "mirror": "pads by 'reflect', not by zeros",
        "unused": "does not run as a module in the forward pass",
        "head": "a linear layer; only convolutions are factored",
    }
    assert layers["stem"] == {
        "name": "stem", "kind": "convolution", "out": 16, "in": 3, "kernel": [3, 3],
        "replaced": True, "reason": "",
    }  # fmt: skip
    assert layers["grouped"]["in"] == 16
    assert [type(decomposed.module.get_submodule(name)) is nn.Sequential for name in layers] == [
        not reason for reason in reasons.values()
    ]
    for key, tensor in source.module.state_dict().items():
        assert torch.equal(tensor, untouched[key]), key


def test_decomposed_network_computes_the_same():
    source = network_of(seeded(Stem).double())
    images = torch.randn(
        4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    decomposed = decompose(source, DecomposeSettings())
    assert not decomposed.module.training
    torch.testing.assert_close(decomposed.module(images), source.module(images), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        merged_module(decomposed.module)(images), source.module(images), rtol=0, atol=1e-10
    )


def test_kept_layers_stay():
    decomposed = decompose(network_of(seeded(Stem)), DecomposeSettings(keep=("stem",)))
    assert isinstance(decomposed.module.stem, nn.Conv2d)
    assert decomposed.history[-1].notes["layers"][0]["reason"] == "named by --keep"
    assert decomposed.history[-1].settings == {"keep": ("stem",)}


def test_a_layer_that_runs_twice_or_stands_twice_is_replaced_in_both_places():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.alias = self.first
            self.tied = nn.Conv2d(3, 3, 3, padding=1)
            self.tied_too = nn.Conv2d(3, 3, 3, padding=1)
            self.tied_too.weight = self.tied.weight

        def forward(self, images):
            return self.tied_too(self.tied(self.alias(self.first(images)))).mean(dim=(2, 3))

    source = network_of(seeded(Twice), classes=3)
    decomposed = decompose(source, DecomposeSettings())
    assert decomposed.module.first is decomposed.module.alias
    assert is_block(decomposed.module.first)
    layers = {one.name: one for one in trace_layers(source.module, (3, 16, 16))}
    assert layers["first"].pixels_out == 2 * 16 * 16
    assert layers["tied"].reason == layers["tied_too"].reason
    assert "shares its weights" in layers["tied"].reason


def test_unknown_layers_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"--keep 'stemm' is no layer.*nearest: stem"):
        decompose(network_of(seeded(Stem)), DecomposeSettings(keep=("stemm",)))
    with pytest.raises(UsageError, match="twice"):
        DecomposeSettings(keep=("stem", "stem"))


def test_a_decomposed_network_is_not_decomposed_again():
    decomposed = decompose(network_of(seeded(Stem)), DecomposeSettings())
    with pytest.raises(UsageError, match="decomposed already"):
        decompose(decomposed, DecomposeSettings())


def test_nan_weights_are_named():
    module = seeded(Stem)
    with torch.no_grad():
        module.point.weight[0, 0] = float("nan")
    with pytest.raises(InputRejectedError, match="layer point: the kernel holds NaN"):
        decompose(network_of(module), DecomposeSettings())


def test_progress_starts_at_zero_and_ends_at_the_total():
    calls = []
    decompose(
        network_of(seeded(Stem)), DecomposeSettings(),
        progress=lambda description, done, total: calls.append((done, total)),
    )  # fmt: skip
    assert calls[0] == (0, 2)
    assert calls[-1] == (2, 2)


@needs_zoo
@needs_images
@pytest.mark.parametrize("name", exhaustive(ZOO_NAMES, ["resnet20-clean", "lenet-badnets-nobn"]))
def test_published_networks_stay_the_same_function(name):
    source = zoo_network(name)
    pixels, labels = cifar10_test_images(100)
    decomposed = decompose(source, DecomposeSettings())
    with torch.no_grad():
        torch.testing.assert_close(
            decomposed.module(pixels), source.module(pixels), rtol=0, atol=1e-4
        )
    assert accuracy(decomposed, pixels, labels) == accuracy(source, pixels, labels)


class Odd(nn.Module):
    """Layers that look like what is factored and are not."""

    def __init__(self):
        super().__init__()
        self.hooked = nn.Conv2d(3, 8, 3, padding=1)
        self.row = nn.Conv1d(8, 8, 3, padding=1)
        self.hooked.register_forward_hook(lambda *_: None)

    def forward(self, images):
        return self.row(self.hooked(images).mean(2)).mean(2)


def test_hooks_and_other_dimensions_stay():
    reasons = {one.name: one.reason for one in trace_layers(seeded(Odd).eval(), (3, 16, 16))}
    assert reasons == {
        "hooked": "has forward hooks, which a block would lose",
        "row": "a Conv1d; only plain Conv2d are factored",
    }


def test_a_network_that_is_one_layer_is_replaced_whole():
    old, new = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
    assert with_layers(old, {"": new}) is new
