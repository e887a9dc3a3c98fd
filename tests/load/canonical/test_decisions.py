"""Code that goes on by the numbers of its images is refused by name; code that checks is not.

What is written for a device is the way that an example took: a network of two ways would answer as
another network from there on, and a comparison on images of the first way sees nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from odd_networks import By, spec_of
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.canonical.decisions import decision
from edgeclean.load.canonical.form import stock_form
from edgeclean.load.limits import LoadLimits

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
Forward = Callable[[Any, Tensor], Any]


def module_of(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    deep = nn.Conv2d(8, 8, 3, padding=1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return By(forward, first=first, deep=deep, head=head).eval()


def exits_early(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    if x.mean() < 1e6:
        return m.head(x)
    return m.head(m.deep(x))


def repeats(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    while x.abs().max() > 1:
        x = x / 2
    return m.head(x)


def of_a_mean(m: Any, x: Tensor) -> Tensor:
    """The mean is near zero: no number beside it is above the bound."""
    return m.head(m.first(x) if x.mean().item() < 50 else m.deep(m.first(x)))


def picks_a_channel(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    best = int(x.mean((0, 2, 3)).argmax())
    return m.head(x) + x[:, best].mean((1, 2))[:, None]


def counts(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    return m.head(x) * len((x.mean((2, 3)) > 0.1).nonzero())


def halved(x: Tensor) -> Tensor:
    if bool(x.mean() > 0):
        return x / 2
    return x


DECIDES: dict[str, tuple[Forward, str]] = {
    "an early exit": (exits_early, "its forward reads a number"),
    "a loop": (repeats, "reads a number"),
    "float": (lambda m, x: m.head(m.first(x) / float(x.abs().max())), "reads a number"),
    "item": (lambda m, x: m.head(m.first(x) * x.abs().max().item()), "reads a number"),
    "a far bound": (of_a_mean, "reads a number"),
    "an index": (picks_a_channel, "reads a number"),
    "equal": (
        lambda m, x: m.head(m.first(x) if torch.equal(x, x * 2) else m.deep(m.first(x))),
        "reads a number",
    ),
    "numpy": (lambda m, x: m.head(m.first(x) / x.detach().numpy().max()), "by numpy()"),
    "a list": (lambda m, x: m.head(m.first(x) * max(x.mean((0, 2, 3)).tolist())), "by tolist()"),
    "a count": (counts, "goes on by how many numbers it picked"),
    "torch.cond": (
        lambda m, x: m.head(torch.cond(x.mean() > 0, torch.sin, torch.cos, (m.first(x),))),
        "by torch.cond",
    ),
}


@pytest.mark.parametrize("name", DECIDES)
def test_code_that_goes_on_by_the_numbers_of_its_images_is_refused(name: str) -> None:
    forward, words = DECIDES[name]
    with pytest.raises(InputRejectedError, match="decides by the numbers of its images") as caught:
        stock_form(module_of(forward), spec_of(), LoadLimits())
    assert words in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_function_that_decides_is_seen() -> None:
    scripted = torch.jit.script(halved)
    module = module_of(lambda m, x: m.head(scripted(m.first(x))))
    assert decision(module, IMAGES) == "its forward reads a number and goes on by it"


def test_many_reads_are_not_tried_one_by_one() -> None:
    module = module_of(lambda m, x: m.head(m.first(x)) + sum(map(float, x[0, 0, 0])))
    assert decision(module, torch.cat([IMAGES, IMAGES], 3)) == (
        "its forward reads numbers 64 times and goes on by them"
    )


def test_the_layer_that_decides_is_named() -> None:
    inner = module_of(exits_early)
    outer = By(lambda m, x: m.part(x), part=inner).eval()
    assert str(decision(outer, IMAGES)).startswith("layer part reads a number")


def asserts(m: Any, x: Tensor) -> Tensor:
    assert x.abs().max() < 1e6
    torch._assert(x.min() > -1e6, "too small")
    if torch.isnan(x).any():
        raise ValueError
    return m.head(m.first(x))


def keeps_a_number(m: Any, x: Tensor) -> Tensor:
    m.seen = [x.mean().item(), float(x.std()), bool((x > 0).any())]
    return m.head(m.first(x))


def zeroes_in_place(m: Any, x: Tensor) -> Tensor:
    x = m.first(x).clone()
    x[x < 0.1] = 0
    x[x > 0.5] *= 2
    return m.head(x)


def reads_constants(m: Any, x: Tensor) -> Tensor:
    scales = [float(one) for one in torch.linspace(0.5, 1, 3)]
    if torch.ones(3).sum().item() > 2:
        scales = torch.tensor(scales).tolist()
    return m.head(m.first(x) * scales[0])


def zeroes_one_by_one(m: Any, x: Tensor) -> Tensor:
    """Which cannot be written out, so that nothing tells whether it counts; no number is read."""
    parts = []
    for one in m.first(x):
        kept = one.clone()
        kept[kept > 0.5] *= 2
        parts.append(m.head(kept[None]))
    return torch.cat(parts)


TAKEN: dict[str, Forward] = {
    "checks": asserts,
    "numbers that it only keeps": keeps_a_number,
    "a mask": zeroes_in_place,
    "a mask for each image": zeroes_one_by_one,
    "numbers that are the same for all images": reads_constants,
    "its parameters": lambda m, x: m.head(m.first(x) * float(m.deep.weight.abs().max())),
    "shapes": lambda m, x: m.head(m.first(x) if x.shape[2] > 4 else x),
}


@pytest.mark.parametrize("name", TAKEN)
def test_code_that_does_the_same_for_all_images_is_taken(name: str) -> None:
    assert decision(module_of(TAKEN[name]), IMAGES) is None


@pytest.mark.parametrize("forward", [asserts, keeps_a_number])
def test_a_network_is_left_as_it_was(forward: Forward) -> None:
    module = module_of(forward)
    before, kept = module(IMAGES), getattr(module, "seen", None)
    assert decision(module, IMAGES) is None
    assert getattr(module, "seen", None) == kept
    assert torch.equal(module(IMAGES), before)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())
