"""The cost of one image is counted exactly, before it is paid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.running_cost import bounded_cost
from edgeclean.networks.cost import count_macs

SHAPE = (3, 10, 9)


class Named(nn.Module):
    """Calls its layer by the name of its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(input=images)  # type: ignore[no-any-return]


def network(**options: object) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, (3, 2), **options),  # type: ignore[arg-type]
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


def run(module: nn.Module, limits: LoadLimits) -> None:
    with torch.no_grad(), bounded_cost(module, SHAPE, limits):
        module(torch.zeros(1, *SHAPE))


def paid(module: nn.Module) -> tuple[int, int]:
    """Activations and MACs, counted by running it; to flatten is to look at the same numbers."""
    total = 3 * 10 * 9
    shapes = []
    handles = [
        layer.register_forward_hook(lambda _layer, _inputs, output: shapes.append(output.numel()))
        for layer in module.children()
        if not isinstance(layer, nn.Flatten)
    ]
    module(torch.zeros(1, *SHAPE))
    for handle in handles:
        handle.remove()
    return total + sum(shapes), count_macs(module, SHAPE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": (1, 2)},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"stride": (2, 3), "padding": 1, "dilation": 2},
    ],
)
def test_the_limits_are_exact(options: dict[str, object]) -> None:
    module = network(**options)
    activations, macs = paid(module)
    run(module, LoadLimits(activations=activations, macs=macs))
    with pytest.raises(InputRejectedError, match=r"one image of 3x10x9 takes \d+ activations"):
        run(module, LoadLimits(activations=activations - 1, macs=macs))
    with pytest.raises(InputRejectedError, match="the limits are"):
        run(module, LoadLimits(activations=activations, macs=macs - 1))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


def test_a_layer_is_not_run_that_would_be_too_dear() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2**20, 1, bias=False), nn.ReLU())
    ran: list[str] = []
    module[0].register_forward_hook(lambda *_: ran.append("convolution"))
    with pytest.raises(InputRejectedError):
        run(module, LoadLimits(activations=10**6))
    assert ran == []
    with pytest.raises(InputRejectedError), bounded_cost(module, SHAPE, LoadLimits(activations=9)):
        raise AssertionError("the image itself is over the limit")


def test_an_image_given_by_name_is_counted() -> None:
    activations, macs = 3 * 10 * 9 + 4 * 8 * 7, 4 * 8 * 7 * 3 * 3 * 3
    run(Named(), LoadLimits(activations=activations, macs=macs))
    for less in (
        LoadLimits(activations=activations - 1, macs=macs),
        LoadLimits(activations=activations, macs=macs - 1),
    ):
        with pytest.raises(InputRejectedError):
            run(Named(), less)


def test_what_is_no_image_is_the_layers_own_matter() -> None:
    line = nn.Linear(2, 2)
    with pytest.raises((RuntimeError, IndexError)), bounded_cost(line, SHAPE, LoadLimits()):
        line(torch.zeros(()))
    whole = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(InputRejectedError), bounded_cost(whole, SHAPE, LoadLimits(macs=6047)):
        whole(torch.zeros(SHAPE))  # without a batch axis
    with bounded_cost(whole, SHAPE, LoadLimits(macs=6048)):
        whole(torch.zeros(SHAPE))


# Every operation, a layer's or not.

UNLIMITED: dict[str, Any] = {
    "activations": 2**40,
    "operands": 2**40,
    "macs": 10**15,
    "reads": 2**50,
}


class Calls(nn.Module):
    """A network that is one function."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def passes(module: nn.Module, shape: tuple[int, int, int], **limits: int) -> bool:
    try:
        with torch.no_grad(), bounded_cost(module, shape, LoadLimits(**{**UNLIMITED, **limits})):
            module(torch.zeros(1, *shape))
    except InputRejectedError:
        return False
    return True


# Each would take terabytes, or hours, were it run: a refusal shows that it was not.
ENDLESS: dict[str, Callable[[Tensor], Any]] = {
    "enlarged": lambda images: functional.interpolate(images, scale_factor=100_000),
    "padded": lambda images: functional.pad(images, (10**6,) * 4),
    "repeated": lambda images: images.repeat(1, 1, 10**6, 10**6),
    "expanded": lambda images: images[..., :1].expand(-1, -1, -1, 10**12).contiguous(),
    "outer": lambda images: (
        images.flatten().repeat(1000).view(1, -1) + images.flatten().repeat(1000).view(-1, 1)
    ),
    "zeros": lambda images: torch.zeros(10**6, 10**6),
    "made alike": lambda images: images.new_zeros(10**12),
    "unfolded": lambda images: functional.unfold(functional.pad(images, (400,) * 4), 200),
    "transposed": lambda images: functional.conv_transpose2d(
        images, torch.zeros(3, 1, 2, 2), stride=10**6
    ),
    "pooled": lambda images: functional.max_pool2d(functional.pad(images, (999,) * 4), 999, 1),
    "averaged": lambda images: functional.avg_pool2d(functional.pad(images, (999,) * 4), 999, 1),
    "adapted": lambda images: functional.adaptive_avg_pool2d(images, 10**6),
    "joined": lambda images: torch.cat([images.expand(10**4, -1, -1, -1)] * 10**4),
    "multiplied": lambda images: images.transpose(2, 3) @ images.repeat(1, 1, 1, 999),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_operation_that_nobody_could_run_is_refused(name: str) -> None:
    with pytest.raises(InputRejectedError, match=r"one image of 3x10x9 .* the limits? "):
        run(Calls(ENDLESS[name]), LoadLimits(macs=10**6))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([functional.max_pool2d, functional.avg_pool2d]),
    st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.integers(1, 4),
)
def test_a_pool_reads_each_of_its_windows(
    pool: Any, shape: tuple[int, int, int], kernel: tuple[int, int], stride: int
) -> None:
    assume(shape[1] >= kernel[0] and shape[2] >= kernel[1])
    images = torch.zeros(1, *shape)
    reads = images.numel() + functional.unfold(images, kernel, stride=stride).numel()
    module = Calls(lambda images: pool(images, kernel, stride))
    assert passes(module, shape, reads=reads)
    assert not passes(module, shape, reads=reads - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3)
)
def test_a_convolution_reads_each_of_its_windows_once_for_all_its_filters(
    groups: int, each: int, filters: int, kernel: int, padding: int
) -> None:
    shape = (groups * each, 7, 5)
    layer = nn.Conv2d(
        shape[0], groups * filters, kernel, padding=padding, groups=groups, bias=False
    )
    images = torch.zeros(1, *shape)
    windows = functional.unfold(images, kernel, padding=padding).numel()
    reads = images.numel() + layer.weight.numel() + windows
    assert passes(layer, shape, reads=reads, macs=windows * filters)
    assert not passes(layer, shape, reads=reads - 1)
    assert not passes(layer, shape, macs=windows * filters - 1)


@pytest.mark.parametrize(
    "function",
    [
        torch.relu,
        torch.sigmoid,
        lambda images: images.flip(3),
        lambda images: images.cumsum(2),
        lambda images: images * 2,
        lambda images: torch.special.bessel_j0(images),
    ],
)
def test_any_operation_costs_what_it_takes_in_and_puts_out(
    function: Callable[[Tensor], Tensor],
) -> None:
    module, numbers = Calls(function), 3 * 10 * 9
    assert passes(module, SHAPE, activations=2 * numbers, reads=numbers)
    assert not passes(module, SHAPE, activations=2 * numbers - 1)
    assert not passes(module, SHAPE, reads=numbers - 1)
    assert passes(module, SHAPE, operands=4 * numbers)  # each may be copied once
    assert not passes(module, SHAPE, operands=4 * numbers - 1)


def test_views_and_what_is_computed_of_weights_alone_cost_nothing() -> None:
    layer = nn.Linear(9, 2)
    module = Calls(lambda images: images.permute(0, 3, 1, 2).transpose(1, 2)[:, :1])
    assert passes(module, SHAPE, activations=3 * 10 * 9, reads=1)
    both = nn.Sequential(layer)
    weights = layer.weight.numel() + layer.bias.numel()
    assert passes(both, SHAPE, activations=3 * 10 * 9 + 3 * 10 * 2, reads=3 * 10 * 9 + weights)


def test_a_network_near_a_limit_is_called_dear() -> None:
    module = Calls(torch.relu)
    numbers = 3 * 10 * 9
    for limits, dear in (
        ({"reads": 4 * numbers}, False),
        ({"reads": 4 * numbers - 1}, True),
        ({"activations": 8 * numbers}, False),
        ({"activations": 8 * numbers - 1}, True),
    ):
        with bounded_cost(module, SHAPE, LoadLimits(**{**UNLIMITED, **limits})) as bill:
            module(torch.zeros(1, *SHAPE))
        assert bill.is_dear == dear
