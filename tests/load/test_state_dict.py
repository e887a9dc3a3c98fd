"""State dicts as they are published, and against the architecture."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_checkpoint import (
    assert_equal_tensors,
    parsed,
    saved,
    tiny,
)
from torch import Tensor, nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.names import fits
from edgeclean.load.state_dict import check_layout, fit_weights

# State dicts as they are published.


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["", "state_dict", "net", "model", "model_state_dict", "netC"])
def test_state_dict_is_found_under_its_usual_names(name: str, prefix: str) -> None:
    weights = tiny().state_dict()
    tree: Any = OrderedDict((f"{prefix}{key}", tensor) for key, tensor in weights.items())
    if name:
        tree = {name: tree, "epoch": 3, "optimizer": {"lr": [0.1]}, "best": 0.9, "note": "text"}
    assert_equal_tensors(as_needed(parsed(saved(tree)), weights), weights)


def as_needed(tensors: dict[str, Tensor], needed: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that are needed; there must be one way to fit them."""
    (way,) = fits(tensors, lambda _: needed)
    return dict(way.tensors)


def test_state_dict_two_levels_down() -> None:
    weights = tiny().state_dict()
    assert_equal_tensors(parsed(saved({"model": {"state_dict": weights}})), weights)


def test_names_that_fit_as_they_are_are_kept() -> None:
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert_equal_tensors(as_needed(tensors, tensors), tensors)
    assert fits({"module.a": torch.ones(1)}, lambda _: tensors) == []


def test_tied_and_transposed_weights_are_read() -> None:
    shared = torch.arange(6.0).view(2, 3)
    tree = {"a": shared, "b": shared, "c": shared.t(), "d": torch.arange(4.0)[::2]}
    assert_equal_tensors(parsed(saved({"a": shared, "b": shared})), {"a": shared, "b": shared})
    assert_equal_tensors(parsed(saved({"c": tree["c"]})), {"c": tree["c"]})
    assert_equal_tensors(parsed(saved({"d": tree["d"]})), {"d": tree["d"]})


class Subclass(Tensor):
    """A tensor with a behaviour of its own."""


TWO = {"a": torch.ones(2)}
BAD_TREES: dict[str, tuple[object, str]] = {
    "list": ([torch.ones(2)], "is of type list, not a filled state dict"),
    "tensor": (torch.ones(2), "is of type Tensor, not a filled state dict"),
    "empty": ({}, "is of type dict, not a filled state dict"),
    "empty inside": ({"state_dict": {}}, "not a filled state dict"),
    "numbers inside": ({"state_dict": {"x": 3}}, "'x' is a int; only tensors"),
    "nested too deep": ({"net": {"net": {"net": {"net": TWO}}}}, "'net' is a dict"),
    "number as a name": ({3: torch.ones(2)}, "has a key '3'"),
    "escape in a name": ({"a\x1b[31m": torch.ones(2)}, "which is no name"),
    "long name": ({"a" * 501: torch.ones(2)}, "which is no name"),
    "complex": ({"a": torch.ones(2, dtype=torch.complex64)}, "a is complex64"),
    "expanded": ({"a": torch.ones(1).expand(10**9)}, "shape 1000000000 repeats its numbers"),
    "expanded axis": ({"a": torch.ones(3, 1).expand(3, 10**9)}, "repeats its numbers"),
    "sliding window": ({"a": torch.ones(10).as_strided((8, 3), (1, 1))}, "repeats its numbers"),
    "sparse": ({"a": torch.ones(2, 2).to_sparse()}, "layout torch.sparse_coo"),
    "meta": ({"a": torch.ones(10**9, device="meta")}, "a is a meta tensor"),
}


@pytest.mark.parametrize("case", BAD_TREES)
def test_tree_that_is_no_plain_state_dict_is_refused(case: str) -> None:
    tree, message = BAD_TREES[case]
    with pytest.raises(InputRejectedError) as caught:
        parsed(saved(tree))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_quantised_tensor_and_subclass_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch will drop these types
        contents = saved({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)})
        with pytest.raises(InputRejectedError, match="a is qint8"):
            parsed(contents)
    contents = saved({"a": torch.ones(2).as_subclass(Subclass)})
    with pytest.raises(
        InputRejectedError, match=r"'a' asks for code: \S*Subclass; nothing was run"
    ):
        parsed(contents)


def test_tensors_that_share_a_part_are_refused() -> None:
    numbers = torch.arange(10.0)
    with pytest.raises(InputRejectedError, match="a and b share some of their numbers"):
        parsed(saved({"a": numbers[:6], "b": numbers[5:]}))
    apart = {"a": numbers[:5], "b": numbers[5:]}
    assert_equal_tensors(parsed(saved(apart)), apart)


def test_limits_of_a_state_dict_are_exact() -> None:
    tree = {"a": torch.ones(25), "b": torch.ones(25, dtype=torch.float64)}
    check_layout(tree, LoadLimits(entries=2, file_bytes=300))
    with pytest.raises(InputRejectedError, match="300 bytes; the limit file_bytes is 299"):
        check_layout(tree, LoadLimits(file_bytes=299))
    with pytest.raises(InputRejectedError, match="2 tensors; the limit entries is 1"):
        check_layout(tree, LoadLimits(entries=1))


# Names, shapes and numbers against the architecture.


def fitted(change: Callable[[dict[str, Tensor]], object]) -> nn.Module:
    module = tiny()
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    change(weights)
    target = tiny()
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    fit_weights(target, weights)
    return target


def test_counter_of_batches_may_be_missing() -> None:
    loaded = fitted(lambda weights: weights.pop("1.num_batches_tracked"))
    assert_equal_tensors(loaded.state_dict(), tiny().state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in tiny().state_dict().items()}
    weights["1.num_batches_tracked"] = torch.tensor(7)
    target = tiny()
    fit_weights(target, weights)
    expected = {
        name: tensor if name.endswith("tracked") else tensor.float()
        for name, tensor in weights.items()
    }
    assert_equal_tensors(target.state_dict(), expected)


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda weights: weights.update({name: tensor})


def spoil(number: float) -> Callable[[dict[str, Tensor]], object]:
    def change(weights: dict[str, Tensor]) -> None:
        weights["0.weight"] = weights["0.weight"].double()
        weights["0.weight"][1, 2, 0, 1] = number

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("0.bias"), "missing 1 (0.bias); unexpected none"),
        (put("9.bias", torch.ones(1)), "missing none; unexpected 1 (9.bias)"),
        (dict.clear, "(0.weight, 0.bias, 1.weight, 1.bias, 1.running_mean and 3 more)"),
        (put("0.bias", torch.ones(5)), "1 (0.bias is 5 for 4)"),
        (put("0.weight", torch.ones(3, 4, 3, 3)), "0.weight is 3x4x3x3 for 4x3x3x3"),
        (put("0.weight", torch.ones(4, 3, 1, 3)), "0.weight is 4x3x1x3 for 4x3x3x3"),
        (spoil(float("nan")), "0.weight: 1 of 108 numbers are NaN or infinite, the first at [1, 2"),
        (spoil(float("-inf")), "NaN or infinite"),
        (spoil(1e300), "NaN or infinite"),
        (put("1.running_var", torch.tensor([1.0, 1.0, -1e-9, 1.0])), "variances below zero"),
        (put("0.bias", torch.ones(4, dtype=torch.int8)), "0.bias is int8; the architecture has"),
        (put("1.num_batches_tracked", torch.tensor(1.5)), "the architecture has int64"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    with pytest.raises(InputRejectedError) as caught:
        fitted(change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
