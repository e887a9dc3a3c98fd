"""Networks as lists of calls, and the operations between their layers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.networks.operations import (
    ForEachImage,
    Given,
    Held,
    MeanOfParts,
    Operation,
    above,
    addcdiv,
    affine_grid,
    affine_positions,
    asinh,
    bilinear,
    cosh,
    differences,
    entry_written,
    erfc,
    exp2,
    expm1,
    frac,
    hypot,
    logaddexp,
    max_of_parts,
    rms_norm,
    shuffled,
    sinc,
    sinh,
    slice_written,
    softplus,
    trunc,
    turned,
    xlogy,
)
from edgeclean.networks.steps import Call, StepNetwork, free_name, plain_name

NAMES = st.text(alphabet="ab.1/", min_size=1, max_size=8)


@given(wanted=st.lists(NAMES, max_size=8))
@settings(deadline=None)
def test_every_name_that_is_free_can_be_a_module(wanted: list[str]) -> None:
    names: list[str] = []
    for one in wanted:
        names.append(free_name(one, names))
    network = StepNetwork({name: nn.Identity() for name in names}, (), ("a", "a"))
    assert len({id(network.get_submodule(name)) for name in names}) == len(names)


@pytest.mark.parametrize("taken", ["forward", "steps", "training", "layer.half", "add_module.x"])
def test_a_name_of_the_networks_own_is_not_taken(taken: str) -> None:
    name = free_name(taken, [])
    assert name != taken
    StepNetwork({name: nn.Identity()}, (), ("a", "a"))
    assert not hasattr(StepNetwork({}, (), ("", "")), plain_name(taken, "Relu", []))


class Asked(dict[str, int]):
    """Names that count how often it is asked for one."""

    times = 0

    def __contains__(self, name: object) -> bool:
        self.times += 1
        return super().__contains__(name)


@pytest.mark.parametrize("given", ["relu", "forward", "a.b/c", "", "relu_1"])
def test_equal_names_are_numbered_without_counting_up_again(given: str) -> None:
    numbers: dict[str, int] = {}
    kept, taken = Asked(relu_2=0), ["relu_2"]
    for _ in range(60):
        name = plain_name(given, "Relu", kept, numbers)
        assert name == plain_name(given, "Relu", taken), "the numbers only save time"
        kept[name] = 0
        taken.append(name)
    assert kept.times < 4 * 60


def test_values_that_no_later_step_takes_are_let_go() -> None:
    relu, add = nn.ReLU(), Operation(torch.ops.aten.add.Tensor, (Given(0), Given(1)), {})
    calls = [
        Call(module="a.relu", inputs=("x",), output="y"),
        Call(module="a.relu", inputs=("y",), output="z"),
        Call(module="add", inputs=("x", "z"), output="w"),
    ]
    network = StepNetwork({"a.relu": relu, "add": add}, calls, ("x", "w"))
    assert [step.finished for step in network.steps] == [(), ("y",), ("x", "z")]
    images = torch.randn(2, 3)
    assert torch.equal(copy.deepcopy(network)(images), images + images.relu())


def test_operations_that_differ_are_written_differently() -> None:
    """The cache of stages knows a network by how it is written."""
    aten = torch.ops.aten
    written = {
        repr(one)
        for one in (
            Operation(aten.relu.default, (Given(0),), {}),
            Operation(aten.mean.dim, (Given(0), [2, 3]), {}),
            Operation(aten.mean.dim, (Given(0), [2, 3]), {"keepdim": True}),
            Operation(aten.add.Tensor, (Given(0), Held("constant_0")), {}, [torch.ones(1)]),
            Operation(slice_written, (Given(0), Given(1)), {}),
        )
    }
    assert len(written) == 5
    assert not any(" at 0x" in one for one in written)


def test_what_an_operation_holds_moves_and_is_learned_with_the_network() -> None:
    scale, shift = nn.Parameter(torch.ones(3)), torch.zeros(3)
    held = Operation(
        torch.ops.aten.addcmul.default,
        (Held("constant_1"), Given(0), Held("constant_0")),
        {},
        [scale, shift],
    )
    assert dict(held.named_parameters()) == {"constant_0": scale}
    assert set(held.state_dict()) == {"constant_0", "constant_1"}
    assert held.double()(torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64


sides = st.integers(1, 9)


@given(height=sides, width=sides, rows=sides, columns=sides)
@settings(deadline=None)
def test_means_of_parts_are_adaptive_pooling(
    height: int, width: int, rows: int, columns: int
) -> None:
    images = torch.randn(2, 3, height, width)
    expected = functional.adaptive_avg_pool2d(images, (rows, columns))
    got = MeanOfParts((height, width), (rows, columns))(images)
    assert torch.allclose(got, expected, atol=1e-6)


@given(height=sides, width=sides, rows=sides, columns=sides)
@settings(deadline=None)
def test_maxima_of_parts_are_adaptive_pooling(
    height: int, width: int, rows: int, columns: int
) -> None:
    images = torch.randn(2, 3, height, width)
    expected = functional.adaptive_max_pool2d(images, (rows, columns))
    assert torch.equal(max_of_parts(images, (height, width), (rows, columns))[0], expected)


@pytest.mark.parametrize("eps", [None, 0.1])
@pytest.mark.parametrize("shape", [(5,), (4, 5)])
def test_the_norm_of_means_of_squares_is_torchs(shape: tuple[int, ...], eps: float | None) -> None:
    values, weight = torch.randn(2, 3, 4, 5), torch.randn(shape)
    for one in (weight, None):
        expected = functional.rms_norm(values, shape, one, eps)
        torch.testing.assert_close(rms_norm(values, shape, one, eps), expected)


@given(groups=st.sampled_from([1, 2, 3, 6]), k=st.integers(-5, 5), dims=st.permutations(range(4)))
@settings(deadline=None)
def test_channels_and_planes_are_moved_as_pytorch_does(
    groups: int, k: int, dims: list[int]
) -> None:
    values = torch.randn(2, 6, 4, 5)
    assert torch.equal(shuffled(values, groups), functional.channel_shuffle(values, groups))
    assert torch.equal(turned(values, k, dims[:2]), torch.rot90(values, k, dims[:2]))


WIDE = torch.cat([torch.linspace(-1e3, 1e3, 99), torch.linspace(-3, 3, 99), torch.zeros(2)])
# With numbers that a formula without a look at their size would get wrong.
OF_ONE = {
    torch.asinh: (asinh, WIDE),
    torch.cosh: (cosh, WIDE[99:]),
    torch.erfc: (erfc, WIDE),
    torch.frac: (frac, WIDE),
    torch.sinc: (sinc, WIDE[99:]),
    torch.sinh: (sinh, WIDE[99:]),
    torch.trunc: (trunc, WIDE),
}
OF_TWO = {torch.hypot: hypot, torch.logaddexp: logaddexp, torch.xlogy: xlogy}


@pytest.mark.parametrize("expected", OF_ONE, ids=lambda one: one.__name__)
def test_functions_and_their_gradients_are_pytorchs(expected: Callable[[Tensor], Tensor]) -> None:
    function, numbers = OF_ONE[expected]
    mine, theirs = numbers.clone().requires_grad_(), numbers.clone().requires_grad_()
    torch.testing.assert_close(function(mine), expected(theirs), rtol=1e-5, atol=1e-6)
    function(mine).sum().backward()
    expected(theirs).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expected", OF_TWO, ids=lambda one: one.__name__)
def test_functions_of_two_are_pytorchs(expected: Callable[[Tensor, Tensor], Tensor]) -> None:
    left, right = torch.meshgrid(WIDE[::7], WIDE[::5].abs() + 1, indexing="ij")
    torch.testing.assert_close(OF_TWO[expected](left, right), expected(left, right))


def test_quotients_and_differences_are_pytorchs() -> None:
    values, below = torch.randn(2, 3, 5), torch.rand(3, 1) + 1
    expected = torch.addcdiv(values, values, below, value=-2)
    torch.testing.assert_close(addcdiv(values, values, below, value=-2), expected)
    for dim, more in ((1, {"prepend": values}), (-1, {"append": values}), (2, {})):
        expected = torch.diff(values, 2, dim, **more)
        torch.testing.assert_close(differences(values, 2, dim, **more), expected)


def test_powers_are_pytorchs() -> None:
    values = torch.linspace(-20, 5, 99)
    torch.testing.assert_close(expm1(values), values.expm1(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(exp2(values), values.exp2())


@pytest.mark.parametrize("before", [(), (2,), (2, 3, 4)])
def test_a_product_of_two_with_a_weight_is_pytorchs(before: tuple[int, ...]) -> None:
    left, right = torch.randn(*before, 5), torch.randn(*before, 6)
    weight = torch.randn(7, 5, 6)
    for bias in (None, torch.randn(7)):
        expected = functional.bilinear(left, right, weight, bias)
        torch.testing.assert_close(
            bilinear(left, right, weight, bias), expected, rtol=1e-4, atol=1e-4
        )


@given(beta=st.sampled_from([0.5, 1, 3]), threshold=st.floats(-3, 25))
@settings(deadline=None)
def test_steps_at_a_threshold_are_pytorchs(beta: float, threshold: float) -> None:
    values = torch.cat([4 * torch.randn(50), torch.tensor([threshold, torch.nan])])
    expected = functional.threshold(values, threshold, 0.3)
    torch.testing.assert_close(above(values, threshold, 0.3), expected, equal_nan=True)
    expected = functional.softplus(values[:50], beta, threshold)
    torch.testing.assert_close(softplus(values[:50], beta, threshold), expected)


@given(start=st.integers(-7, 7), length=st.integers(0, 6), dim=st.integers(-3, 2))
@settings(deadline=None)
def test_a_slice_is_written_as_an_assignment_does(start: int, length: int, dim: int) -> None:
    values = torch.randn(6, 6, 6)
    part = values.movedim(dim, 0)[start : start + length]
    source = torch.randn(part.shape).movedim(0, dim)
    expected = torch.slice_scatter(values, source, dim, start, start + length)
    assert torch.equal(slice_written(values, source, dim, start, start + length), expected)


@given(dim=st.integers(-3, 2), index=st.integers(-4, 3))
@settings(deadline=None)
def test_an_entry_is_written_as_an_assignment_does(dim: int, index: int) -> None:
    values = torch.randn(4, 4, 4)
    source = torch.randn(4, 4)
    assert torch.equal(
        entry_written(values, source, dim, index), torch.select_scatter(values, source, dim, index)
    )


def test_a_slice_with_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="only 1 can be"):
        slice_written(torch.zeros(4), torch.zeros(2), 0, 0, 4, 2)


@pytest.mark.parametrize("corners", [True, False])
def test_an_affine_grid_is_pytorchs(corners: bool) -> None:
    theta = torch.randn(3, 2, 3)
    expected = functional.affine_grid(theta, [3, 1, 4, 5], align_corners=corners)
    got = affine_grid(theta, affine_positions((4, 5), corners), (4, 5))
    assert torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_constant_is_there_for_each_image(axis: int) -> None:
    one = torch.randn(1, 4) if axis == 0 else torch.randn(4, 1)
    repeated = ForEachImage(one, axis)(torch.zeros(5, 3))
    assert repeated.shape[axis] == 5
    assert torch.equal(repeated, one.expand(5, 4) if axis == 0 else one.expand(4, 5))
