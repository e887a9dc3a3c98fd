import torch
from factor_networks import Plain, seeded
from torch import nn

from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.layers import trace_layers


def test_macs_of_a_small_network_by_hand():
    macs = {layer.name: layer.macs for layer in trace_layers(seeded(Plain), (3, 16, 16))}
    assert macs == {
        "stem": 16 * 16 * 24 * 3 * 9,
        "down": 8 * 8 * 48 * 24 * 9,
        "point": 8 * 8 * 64 * 48,
        "late": 8 * 8 * 48 * 64 * 3,
        "head": 48 * 5,
    }


def test_macs_count_groups_and_repeated_layers():
    grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
    assert count_macs(nn.Sequential(grouped), (8, 5, 5)) == 25 * 8 * 2 * 9
    assert count_macs(nn.Sequential(grouped, grouped), (8, 5, 5)) == 2 * 25 * 8 * 2 * 9


def test_params_are_weights_and_biases_without_statistics():
    assert count_params(nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))) == 48 + 4 + 8


def test_counting_leaves_the_network_as_it_was():
    module = seeded(Plain).train()
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    count_macs(module, (3, 16, 16))
    assert module.training
    assert not any(layer._forward_hooks for layer in module.modules())
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[key]), key
