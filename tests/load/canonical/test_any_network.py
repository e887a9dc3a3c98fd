"""Networks of random ingredients: the form that they get is the same function, of stock layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from odd_networks import HEADS, MIDDLES, NORMS, Recipe, loaded, logits_of
from torch import Tensor, nn

from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.load.canonical.form import as_stock_layers, stock_form
from edgeclean.load.limits import LoadLimits
from edgeclean.networks.autocast import channels_last
from edgeclean.networks.layers import trace_layers

LIMITS = LoadLimits()
SIDES = (28, 32, 33, 40, 64)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    count = draw(st.integers(1, 3))
    listed = {"min_size": count, "max_size": count}
    return Recipe(
        middles=tuple(draw(st.lists(st.sampled_from(sorted(MIDDLES)), **listed))),
        norms=tuple(draw(st.lists(st.sampled_from(sorted(NORMS)), **listed))),
        head=draw(st.sampled_from(sorted(HEADS))),
        input_shape=(
            draw(st.sampled_from((1, 3))),
            draw(st.sampled_from(SIDES)),
            draw(st.sampled_from(SIDES)),
        ),
        classes=draw(st.sampled_from((2, 10, 43, 1000))),
        seed=draw(st.integers(0, 99)),
    )


@given(recipe=recipes())
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
def test_a_network_of_any_ingredients_gets_a_form_of_the_same_function(recipe: Recipe) -> None:
    assume(runs(recipe))
    check(recipe)


def runs(recipe: Recipe) -> bool:
    """Whether PyTorch itself runs the network: of what an einsum gave there may be no view."""
    try:
        recipe.build()(torch.zeros(4, *recipe.input_shape))
    except RuntimeError as error:
        if "view size is not compatible" in str(error):
            return False
        raise
    return True


@pytest.mark.parametrize("middle", sorted(MIDDLES))
def test_each_ingredient_alone(middle: str) -> None:
    check(Recipe(middles=(middle,), norms=("batch",)))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_each_head_alone(head: str) -> None:
    check(Recipe(head=head))


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_each_norm_alone(norm: str) -> None:
    check(Recipe(norms=(norm,)))


@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 28, 28), (3, 30, 64), (3, 1, 128)])
def test_images_of_any_shape(shape: tuple[int, int, int]) -> None:
    middles = ("same", "weight-read") if shape[1] > 1 else ("by-keyword", "weight-read")
    check(Recipe(middles=middles, norms=("batch", "frozen"), input_shape=shape, head="len"))


def check(recipe: Recipe) -> None:
    images = torch.randn(4, *recipe.input_shape, generator=torch.Generator().manual_seed(1))
    network, spec = recipe.build(), recipe.spec
    with torch.no_grad():
        expected = logits_of(network(images.clone()))
    form = stock_form(network, spec, LIMITS).module
    with torch.no_grad():
        for batch in (images, images[:1], images[1:3]):
            answers = {form(batch), form(batch.contiguous(memory_format=torch.channels_last))}
            start = 1 if len(batch) == 2 else 0
            for answer in answers:
                close(answer, expected[start : start + len(batch)], 1e-5)
    factored = decompose(loaded(form, spec), DecomposeSettings())
    with torch.no_grad():
        close(channels_last(factored.module)(images), expected, 1e-4)
    layers = {layer.name: layer for layer in trace_layers(form, spec.input_shape)}
    for layer in layers.values():
        assert "does not run" not in layer.reason
        if isinstance(layer.module, nn.Conv2d):
            assert type(layer.module) is nn.Conv2d
            assert (layer.reason == "") == (layer.module.groups == 1), layer.name
    assert {"body.0", "fc"} <= layers.keys()  # the names of the original


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * (1 + float(expected.abs().max()))


@given(recipe=recipes())
@settings(deadline=None, max_examples=2, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_written_out_can_be_written_out_again(recipe: Recipe) -> None:
    """A form is a network as any other, and already what it should be."""
    assume(runs(recipe))
    spec = recipe.spec
    form = stock_form(recipe.build(), spec, LIMITS).module
    again = as_stock_layers(form, spec, LIMITS)
    assert stock_form(again, spec, LIMITS).module is again
    images = torch.randn(2, *recipe.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        close(again(images), form(images), 1e-5)
