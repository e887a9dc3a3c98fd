"""The cost of one image is counted exactly, before it is paid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
