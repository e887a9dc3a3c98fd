"""Nodes are written under names that a graph does not have, and as its opset spells them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_graphs import TOLERANCE, imported
from onnx_middles import SIDE, network, node

from edgeclean.load.onnx.graph import replace_nodes_, with_shapes
from edgeclean.load.onnx.writer import GraphWriter

SHAPE = (1, 1, 4, 5)


def made(kind: str, axes: list[int], opset: int) -> tuple[int, ...]:
    """The shape of what an operator makes along axes, by ONNX's own checker and inference."""
    graph = helper.make_graph(
        [],
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_empty_tensor_value_info("out")],
    )
    written = helper.make_node(kind, ["image"], ["out"])
    writer = GraphWriter(graph, opset)
    if kind == "Slice" and opset < 10:
        bounds = (("starts", [1]), ("ends", [2]))
        written.attribute.extend(helper.make_attribute(*one) for one in bounds)
    elif kind == "Slice":
        written.input.extend([writer.constant([1], "bound"), writer.constant([2], "bound")])
    writer.set_axes(written, [0], "axes")
    writer.set_axes(written, axes, "axes")
    writer.nodes.append(written)
    replace_nodes_(graph, writer.nodes)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    inferred = with_shapes(model, strict_mode=True)
    value = inferred.graph.output[0]
    value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.checker.check_model(inferred)
    return tuple(side.dim_value for side in value.type.tensor_type.shape.dim)


@pytest.mark.parametrize("opset", [9, 10, 12, 13, 17, 18, 22])
def test_axes_are_as_the_opset_has_them(opset: int) -> None:
    """The last that are given count."""
    assert made("Squeeze", [1], opset) == (1, 4, 5)
    assert made("Unsqueeze", [1, 2], opset) == (1, 1, 1, 1, 4, 5)
    assert made("ReduceSum", [2], opset) == (1, 1, 1, 5)
    assert made("ReduceMean", [3], opset) == (1, 1, 4, 1)
    assert made("Slice", [2], opset) == (1, 1, 1, 5)


def test_a_name_is_new_whatever_the_graph_has() -> None:
    values = ["image", *(f"a/{number}" for number in range(3, 40, 2))]
    nodes = [helper.make_node("Relu", [one], [out]) for one, out in pairwise(values)]
    graph = helper.make_graph(nodes, "graph", [helper.make_empty_tensor_value_info("image")], [])
    writer = GraphWriter(graph, 17)
    names = [writer.name("a") for _ in range(40)]
    names += [writer.constant([1], "a"), writer.name("b"), writer.name("a/1")]
    assert len({*names, *values}) == len(names) + len(values)
    assert writer.constants.keys() == {one.name for one in graph.initializer} == {names[40]}


def with_named(model: ModelProto, name: str) -> ModelProto:
    """The same network, whose value c has another name."""
    for one in model.graph.node:
        for names in (one.input, one.output):
            names[:] = [name if own == "c" else own for own in names]
    return model


def fused() -> ModelProto:
    model = network(middle=(node("QuickGelu", ["r"], ["m"], domain="com.microsoft"),))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def quantised() -> ModelProto:
    pair = [
        node(f"{kind}Linear", [one, "step", "zero"], [to])
        for kind, one, to in (("Quantize", "r", "q"), ("Dequantize", "q", "m"))
    ]
    model = network(middle=tuple(pair))
    numbers = {"step": np.float32(0.05), "zero": np.array(0, np.uint8)}
    model.graph.initializer.extend(numpy_helper.from_array(n, k) for k, n in numbers.items())
    return model


@pytest.mark.parametrize("name", ["m/fused1", "m/low", "m/10", "m/11", "m/12", "m/13"])
def test_a_file_may_have_the_names_that_would_be_given(name: str) -> None:
    for model in (fused(), quantised()):
        read = imported(with_named(model, name).SerializeToString())
        assert read.shape == (3, SIDE, SIDE)
        assert read.comparison["compared"] < TOLERANCE
