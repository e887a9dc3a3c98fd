"""Images on their way through a network: the same values, whatever is kept between two steps."""

import pytest
import torch
from torch import nn

from edgeclean.compression.flow import Flow
from edgeclean.compression.planned_network import _rows
from edgeclean.networks.layers import trace_layers
from edgeclean.networks.operations import Given, Operation
from edgeclean.networks.steps import Call, StepNetwork


def steps():
    """A residual block whose last ReLU works in place, and a layer behind it."""
    torch.manual_seed(0)
    modules = {
        "first": nn.Conv2d(3, 6, 3, padding=1),
        "second": nn.Conv2d(6, 6, 3, padding=1),
        "add": Operation(torch.ops.aten.add.Tensor, (Given(0), Given(1)), {}),
        "relu": nn.ReLU(inplace=True),
        "last": nn.Conv2d(6, 4, 1),
    }
    calls = [
        Call(module="first", inputs=("x",), output="a"),
        Call(module="second", inputs=("a",), output="b"),
        Call(module="add", inputs=("a", "b"), output="c"),
        Call(module="relu", inputs=("c",), output="d"),
        Call(module="last", inputs=("d",), output="e"),
    ]
    return StepNetwork(modules, calls, ("x", "e")).eval()


def images(count=20):
    return torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def inputs_of(module, layer, seen_on):
    seen = []
    handle = module.get_submodule(layer).register_forward_pre_hook(
        lambda _layer, inputs: seen.append(inputs[0].clone())
    )
    with torch.no_grad():
        module(seen_on)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("order", [("first", "second", "last"), ("last", "first", "second")])
def test_what_enters_a_layer_is_what_a_whole_pass_shows(order):
    module, pixels = steps(), images()
    flow = Flow(module, pixels)
    for layer in order:
        found = torch.cat([part.clone() for part in flow.inputs(layer)])
        torch.testing.assert_close(found, inputs_of(module, layer, pixels))


@pytest.mark.parametrize("layer", ["", "first", "second", "last"])
def test_outputs_from_a_layer_on_are_those_of_the_network_as_it_now_is(layer):
    module, pixels = steps(), images()
    flow = Flow(module, pixels)
    flow.outputs(layer)
    with torch.no_grad():
        (module.get_submodule(layer) if layer else module.last).weight.mul_(-2)
        for _ in range(2):  # a step that works in place must not spoil what is kept
            torch.testing.assert_close(flow.outputs(layer), module(pixels))


def test_changed_weights_count_for_the_layers_behind():
    module, pixels = steps(), images()
    flow = Flow(module, pixels)
    list(flow.inputs("second"))
    with torch.no_grad():
        module.second.weight.mul_(3)
    found = torch.cat(list(flow.inputs("last")))
    torch.testing.assert_close(found, inputs_of(module, "last", pixels))


def test_any_other_network_runs_from_its_beginning():
    torch.manual_seed(0)
    module, pixels = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), images()
    flow = Flow(module, pixels)
    found = torch.cat(list(flow.inputs("2")))
    torch.testing.assert_close(found, inputs_of(module, "2", pixels))
    with torch.no_grad():
        torch.testing.assert_close(flow.outputs("2"), module(pixels))


@pytest.mark.parametrize("count", [97, 256, 512])
def test_steps_are_judged_on_images_that_nothing_was_fitted_to(count):
    module = steps()
    fitted, others = _rows(count, module, trace_layers(module, (3, 5, 5)), 48)
    assert not set(fitted.tolist()) & set(others.tolist())
    assert len(others) == 48
    assert 48 <= len(fitted) <= 192
