"""What one forward pass tells of a network's layers."""

import pytest
import torch
from factor_networks import Stem, network_of, seeded
from torch import nn

from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.networks.layers import conv_shapes, evaluated, trace_layers


class Twice(nn.Module):
    """One convolution under two names, which runs three times on images of two sizes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, stride=2, padding=1, bias=False)
        self.alias = self.first
        self.head = nn.Linear(3, 2)

    def forward(self, images):
        large, small = self.first(images), self.first(images[..., :4, :6])
        return self.head(large.mean((2, 3)) + self.alias(input=small).mean((2, 3)))


def by_name(module, shape=(3, 16, 16)):
    return {layer.name: layer for layer in trace_layers(module, shape)}


def test_a_layer_is_told_once_with_all_its_runs_and_names():
    layers = by_name(Twice())
    assert list(layers) == ["first", "head"]
    first = layers["first"]
    assert first.owners == ("first", "alias")
    assert first.runs == 3
    assert first.images_in == ((16, 16), (4, 6), (2, 3))
    assert first.images_out == ((8, 8), (2, 3), (1, 2))
    assert first.pixels_in == 256 + 24 + 6
    assert first.pixels_out == 64 + 6 + 2
    assert first.macs == 72 * 3 * 3 * 9
    assert [shape.image_out for shape in first.shapes] == list(first.images_out)
    assert sum(shape.macs for shape in first.shapes) == first.macs
    assert conv_shapes(layers.values()) == {}
    assert layers["head"].images_in == ((),)
    assert layers["head"].macs == 6


def test_a_block_is_one_layer_of_its_convolutions_shape():
    source = network_of(seeded(Stem))
    decomposed = decompose(source, DecomposeSettings())
    before, after = by_name(source.module), by_name(decomposed.module)
    assert list(before) == list(after)
    for name, layer in after.items():
        told = (layer.describe(), layer.shapes, layer.images_out, layer.reason)
        dense = before[name]
        assert told == (dense.describe(), dense.shapes, dense.images_out, dense.reason)
    stem = after["stem"].module
    assert (
        after["stem"].macs == 256 * sum(part.weight.numel() for part in stem) > before["stem"].macs
    )


def test_kinds_are_told_apart():
    kinds = {name: layer.kind for name, layer in by_name(seeded(Stem).eval()).items()}
    assert kinds == {
        "stem": "convolution",
        "depthwise": "depthwise",
        "grouped": "grouped",
        "point": "pointwise",
        "mirror": "convolution",
        "unused": "convolution",
        "head": "linear",
    }


def test_every_part_keeps_its_mode_and_no_hook_stays():
    module = seeded(Stem).train()
    module.norm.eval()
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    trace_layers(module, (3, 16, 16))
    assert module.training
    assert module.stem.training
    assert not module.norm.training
    assert not any(one._forward_hooks for one in module.modules())
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_a_network_that_fails_keeps_no_hook():
    module = seeded(Stem).train()
    with pytest.raises(RuntimeError):
        trace_layers(module, (4, 16, 16))
    assert module.training
    assert not any(one._forward_hooks for one in module.modules())


def test_a_network_without_weights_has_no_layers():
    assert trace_layers(nn.Sequential(nn.ReLU(), nn.Flatten()), (3, 4, 4)) == ()


class Silent(nn.Sequential):
    """Its ``train`` returns nothing, as that of mmcv's backbones, and so does its ``eval``."""

    def train(self, mode: bool = True) -> None:
        super().train(mode)


def test_a_module_whose_train_returns_nothing_is_evaluated_all_the_same():
    module = Silent(nn.Conv2d(3, 4, 3), nn.Dropout())
    assert module.eval() is None
    module.train()
    assert evaluated(module) is module
    assert not any(part.training for part in module.modules())
