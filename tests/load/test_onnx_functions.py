"""Functions that an ONNX file defines are read where they are called, and bounded before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx_graphs import TOLERANCE, by_runtime, images, imported
from onnx_middles import CHANNELS, SIDE, network, node

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.functions import ATTENTION_NODES


def function(name: str, *nodes: NodeProto, opset: int = 17, own: int = 1) -> Any:
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", own)]
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


AXES = node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([2, 3])))
LOW = node("Constant", [], ["low"], value=numpy_helper.from_array(np.float32(0.1)))
SUM = node("Add", ["a", "b"], ["z"])
# An opset, a body of it, and the same in the graph's own.
BODIES: dict[str, tuple[int, tuple[NodeProto, ...], tuple[NodeProto, ...]]] = {
    "as it is": (13, (node("Relu", ["a"], ["z"]),), (node("Relu", ["a"], ["z"]),)),
    "older": (9, (node("Clip", ["a"], ["z"], min=0.1),), (LOW, node("Clip", ["a", "low"], ["z"]))),
    "newer": (
        18,
        (AXES, node("ReduceMean", ["a", "axes"], ["b"]), SUM),
        (node("ReduceMean", ["a"], ["b"], axes=[2, 3]), SUM),
    ),
}


@pytest.mark.parametrize("name", ["F", "Twice"])
@pytest.mark.parametrize("body", BODIES)
def test_a_function_of_another_opset_is_read_by_that_one(body: str, name: str) -> None:
    """ONNX Runtime takes a body for one of the graph's opset, and is given it as such here."""
    opset, nodes, in_own = BODIES[body]
    contents = called(name, function("F", *nodes, opset=opset), twice("Twice", "F"))
    plain = called(name, function("F", *in_own), twice("Twice", "F")).SerializeToString()
    read, shape, _, _ = imported(contents.SerializeToString())
    pixels = images(3, shape)
    with torch.no_grad():
        torch.testing.assert_close(
            read(pixels), by_runtime(plain, pixels), rtol=TOLERANCE, atol=TOLERANCE
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
        (called("F", function("F", node("Gelu", ["a"], ["z"]), opset=20)), "Gelu.*with one opset"),
        (called("F", function("F", node("Relu", ["a"], ["z"]), own=2)), "'F' imports other"),
    ],
    ids=["bomb", "deep", "itself", "circle", "what it hides", "newer alone", "another domain"],
)
def test_functions_that_are_too_many_or_hide_something_are_refused(
    model: ModelProto, why: str
) -> None:
    with pytest.raises(InputRejectedError, match=why):
        imported(model.SerializeToString())


def attending(opset: int, *mask: str, **attributes: Any) -> ModelProto:
    """A network with two heads of attention among the pixels of its planes."""
    middle = (
        node("Reshape", ["r", "heads"], ["h"]),
        node("Transpose", ["h"], ["t"], perm=[0, 1, 3, 2]),
        node("Attention", ["t", "t", "t", *mask], ["a"], **attributes),
        node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
        node("Reshape", ["b", "planes"], ["m"]),
    )
    shapes = {"heads": [-1, 2, CHANNELS // 2, SIDE**2], "planes": [-1, CHANNELS, SIDE, SIDE]}
    bias = np.linspace(-1, 1, SIDE**4).reshape(SIDE**2, SIDE**2)
    numbers = {**shapes, **{name: bias for name in mask}}
    return network(middle=middle, numbers=numbers, opset=opset)


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(
    ("mask", "attributes"),
    [
        ((), {}),
        ((), {"scale": 0.3}),
        (("bias",), {"softcap": 2.0}),
        ((), {"is_causal": 1}),
        (("bias",), {"is_causal": 1}),
    ],
    ids=["plain", "scaled", "biased", "causal", "causal and biased"],
)
def test_attention_is_read_as_onnx_itself_defines_it(
    opset: int, mask: tuple[str, ...], attributes: dict[str, Any]
) -> None:
    contents = attending(opset, *mask, **attributes).SerializeToString()
    read, shape, _, _ = imported(contents)
    pixels = images(3, shape)
    with torch.no_grad():
        torch.testing.assert_close(
            read(pixels), by_runtime(contents, pixels), rtol=TOLERANCE, atol=TOLERANCE
        )


def test_attention_is_counted_before_it_is_written_out() -> None:
    contents = attending(23).SerializeToString()
    limits = LoadLimits(onnx_nodes=ATTENTION_NODES)
    with pytest.raises(InputRejectedError, match="with its Attention nodes written out the graph"):
        imported(contents, limits=limits)
