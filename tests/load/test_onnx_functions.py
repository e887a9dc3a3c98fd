"""Functions that an ONNX file defines are read where they are called, and bounded before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from onnx import ModelProto, NodeProto, helper
from onnx_graphs import TOLERANCE, by_runtime, images, imported
from onnx_middles import network, node

from edgeclean.errors import InputRejectedError


def function(name: str, *nodes: NodeProto, opset: int = 17) -> Any:
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["z"], nodes, opsets)


def called(name: str, *functions: Any) -> ModelProto:
    """A network whose middle is a function of its own."""
    model = network(middle=(node(name, ["r"], ["m"], domain="own"),))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.extend(functions)
    return model


SWISH = function("Swish", node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["z"]))


def twice(name: str, inner: str) -> Any:
    calls = (node(inner, ["a"], ["b"], domain="own"), node(inner, ["b"], ["z"], domain="own"))
    return function(name, *calls)


@pytest.mark.parametrize("name", ["Swish", "Twice"])
def test_functions_of_the_files_own_are_read_where_they_are_called(name: str) -> None:
    contents = called(name, SWISH, twice("Twice", "Swish")).SerializeToString()
    read, shape, _, _ = imported(contents)
    pixels = images(3, shape)
    with torch.no_grad():
        torch.testing.assert_close(
            read(pixels), by_runtime(contents, pixels), rtol=TOLERANCE, atol=TOLERANCE
        )


def bomb(count: int) -> ModelProto:
    """A few hundred bytes, of which each function doubles the nodes of the one before."""
    functions, inner = [SWISH], "Swish"
    for number in range(count):
        functions.append(twice(f"F{number}", inner))
        inner = f"F{number}"
    return called(inner, *functions)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (bomb(28), r"has \d{10} nodes; the limit onnx_nodes"),
        (bomb(200), "more than 32 deep, or in a circle"),
        (called("F", twice("F", "F")), "more than 32 deep, or in a circle"),
        (called("F", twice("F", "G"), twice("G", "F")), "more than 32 deep, or in a circle"),
        (called("F", function("F", node("GRU", ["a"], ["z"]))), "recurrent layers are not read"),
        (called("F", function("F", node("Relu", ["a"], ["z"]), opset=13)), "holds functions"),
    ],
    ids=["bomb", "deep", "itself", "circle", "what it hides", "another opset"],
)
def test_functions_that_are_too_many_or_hide_something_are_refused(
    model: ModelProto, why: str
) -> None:
    with pytest.raises(InputRejectedError, match=why):
        imported(model.SerializeToString())
