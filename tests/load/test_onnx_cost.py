"""What a graph costs is counted by its shapes: inputs, outputs, windows, padding, constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference
from onnx_graphs import LIMITS, converted

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.cost import check_cost
from edgeclean.load.onnx.node import NodeView
from edgeclean.load.running_cost import bounded_cost

UNLIMITED: dict[str, Any] = {
    "activations": 2**40,
    "operands": 2**40,
    "macs": 10**15,
    "reads": 2**50,
    "file_bytes": 2**40,
}


def model(
    nodes: list[Any], shape: tuple[int, ...], constants: dict[str, Any] | None = None
) -> ModelProto:
    """A graph from "image" to "out" with shapes known throughout."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.asarray(numbers), name)
            for name, numbers in (constants or {}).items()
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return shape_inference.infer_shapes(made, strict_mode=True)


def one(kind: str, shape: tuple[int, ...], weight: Any = None, **attributes: Any) -> ModelProto:
    inputs = ["image"] if weight is None else ["image", "w"]
    node = helper.make_node(kind, inputs, ["out"], "node", **attributes)
    return model([node], shape, None if weight is None else {"w": weight})


def resized(old: int, new: int, times: int = 1, **attributes: Any) -> ModelProto:
    """Resize lines, each as often as it is said."""
    attributes["coordinate_transformation_mode"] = "asymmetric"
    nodes = [
        helper.make_node("Resize", ["image", "", "", "sizes"], [f"a{index}"], **attributes)
        for index in range(times)
    ]
    last = helper.make_node("GlobalAveragePool", ["a0"], ["out"])
    return model([*nodes, last], (1, 1, old), {"sizes": np.array([1, 1, 1, new])})


def passes(graph: ModelProto, **limits: int) -> bool:
    try:
        check_cost(graph, LoadLimits(**{**UNLIMITED, **limits}))
    except InputRejectedError:
        return False
    return True


def least(graph: ModelProto, limit: str) -> int:
    """The smallest value of a limit under which the graph passes."""
    low, high = 0, UNLIMITED[limit]
    assert passes(graph)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(graph, **{limit: middle}) else (middle, high)
    return high


HOSTILE = {
    "large image": lambda: one("MaxPool", (3, 9000, 9000), kernel_shape=[1, 1], strides=[9000] * 2),
    "wide image": lambda: one("ReduceMean", (3, 1, 2**26), axes=[3]),
    "many channels": lambda: one("GlobalAveragePool", (2**27, 1, 1)),
    "uneven padding": lambda: one(
        "Conv",
        (3, 12, 12),
        np.ones((1, 3, 3, 3), np.float32),
        pads=[13000, 13000, 12999, 12999],
        strides=[13000, 13000],
    ),
    "SAME padding": lambda: one(
        "MaxPool",
        (3, 12, 12),
        kernel_shape=[3, 3],
        dilations=[9000, 9000],
        strides=[12, 12],
        auto_pad="SAME_UPPER",
    ),
    "padded pool": lambda: one(
        "AveragePool",
        (3, 12, 12),
        kernel_shape=[9000, 9000],
        pads=[8999, 8999, 8998, 8998],
        strides=[9000, 9000],
        count_include_pad=1,
    ),
    "evenly padded pool": lambda: one(
        "MaxPool", (3, 12, 12), kernel_shape=[9000] * 2, pads=[8999] * 4, strides=[9000] * 2
    ),
    "pool": lambda: one("MaxPool", (3, 512, 512), kernel_shape=[255, 255], pads=[127] * 4),
    "average": lambda: one("AveragePool", (3, 512, 512), kernel_shape=[255, 255], pads=[127] * 4),
    "depthwise": lambda: one(
        "Conv", (8, 256, 256), np.ones((8, 1, 99, 99), np.float32), group=8, pads=[49] * 4
    ),
    "one filter": lambda: one(
        "Conv", (16, 1000, 1000), np.ones((1, 16, 15, 15), np.float32), pads=[7] * 4
    ),
    "transposed": lambda: one(
        "ConvTranspose", (8, 64, 64), np.ones((8, 1, 99, 99), np.float32), strides=[40, 40]
    ),
    "unknown": lambda: one("Softplus", (3, 6000, 6000)),
    "outer product": lambda: model(
        [
            helper.make_node("Transpose", ["image"], ["t"], perm=[0, 1, 3, 2]),
            helper.make_node("Mul", ["image", "t"], ["out"]),
        ],
        (1, 1, 2**13),
    ),
    "many small looks": lambda: model(
        [
            *(helper.make_node("GlobalAveragePool", ["image"], [f"a{i}"]) for i in range(300)),
            helper.make_node("Relu", ["a0"], ["out"]),
        ],
        (1, 4000, 4000),
    ),
    "interpolation of a line": lambda: resized(4096, 131072, mode="linear"),
    "resampling of a line": lambda: resized(1, 2**24, nearest_mode="ceil"),
    "many interpolations": lambda: resized(1024, 16384, 17, mode="cubic"),
    "shared constant": lambda: model(
        [helper.make_node("MatMul", ["image", "w"], [f"a{i}"]) for i in range(600)]
        + [helper.make_node("Relu", ["a0"], ["out"])],
        (1, 1, 1024),
        {"w": np.zeros((1024, 512), np.float32)},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_graph_that_costs_much_is_refused(name: str) -> None:
    with pytest.raises(InputRejectedError, match=r"the limits? (is|are|\w+ is)"):
        check_cost(HOSTILE[name](), LIMITS)


def test_what_a_resizing_derives_is_counted_as_constants_once_for_a_batch() -> None:
    old, new = 7, 300
    sizes = 8 * 4 // 2  # as four-byte numbers are all constants counted
    for batch in (1, 5):
        graph = resized(old, new, mode="linear")
        graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
        graph.graph.value_info[0].type.tensor_type.shape.dim[0].dim_value = batch
        assert least(graph, "file_bytes") == 4 * (1 + old * new) + sizes
        assert least(graph, "operands") >= 3 * (1 + old * new)
    assert least(resized(old, new), "file_bytes") == 8 * (1 + new) + sizes


sides = st.integers(1, 9)
pads = st.integers(0, 3)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ModelProto, int, int, int]:
    """A convolution; and the numbers of its operands, of its windows, and of a padded copy."""
    groups, each, filters = (draw(st.integers(1, 3)) for _ in range(3))
    shape = (groups * each, draw(sides), draw(sides))
    kernel, strides = [draw(st.integers(1, 4)) for _ in range(2)], [draw(sides) for _ in range(2)]
    around = [draw(pads) for _ in range(4)]
    padded = torch.nn.functional.pad(
        torch.zeros(1, *shape), (around[1], around[3], around[0], around[2])
    )
    assume(padded.shape[2] >= kernel[0] and padded.shape[3] >= kernel[1])
    windows = torch.nn.functional.unfold(padded, kernel, stride=strides).numel()
    weight = np.ones((groups * filters, each, *kernel), np.float32)
    graph = one("Conv", shape, weight, strides=strides, pads=around, group=groups)
    copy = padded.numel() if around[:2] != around[2:] else 0
    return graph, math.prod(shape) + weight.size + windows + 2 * copy, windows * filters, copy


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_a_convolution_reads_and_multiplies_what_it_unfolds(
    made: tuple[ModelProto, int, int, int],
) -> None:
    graph, reads, macs, copy = made
    assert least(graph, "reads") - sum_of_input(graph) == reads
    assert least(graph, "macs") == macs
    put_out = math.prod(axis.dim_value for axis in graph.graph.output[0].type.tensor_type.shape.dim)
    assert least(graph, "activations") == put_out + copy


def sum_of_input(graph: ModelProto) -> int:
    """The image itself is read once, before anything is done with it."""
    return math.prod(axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["MaxPool", "AveragePool"]),
    st.tuples(st.integers(1, 3), sides, sides),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(sides, sides),
)
def test_a_pool_reads_every_window(
    kind: str, shape: tuple[int, int, int], kernel: tuple[int, int], strides: tuple[int, int]
) -> None:
    assume(shape[1] >= kernel[0] and shape[2] >= kernel[1])
    windows = torch.nn.functional.unfold(torch.zeros(1, *shape), kernel, stride=strides).numel()
    graph = one(kind, shape, kernel_shape=list(kernel), strides=list(strides))
    assert least(graph, "reads") == 2 * math.prod(shape) + windows


KNOWN = ["Relu", "Sigmoid", "Softplus", "Erf", "GlobalMaxPool", "Identity", "Neg", "Softmax"]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KNOWN), st.tuples(st.integers(1, 9), st.integers(2, 9), st.integers(2, 9)))
def test_every_operator_costs_its_inputs_and_outputs(
    kind: str, shape: tuple[int, int, int]
) -> None:
    graph = one(kind, shape)
    given, put_out = (
        math.prod(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (graph.graph.input[0], graph.graph.output[0])
    )
    assert least(graph, "operands") == given + put_out
    assert least(graph, "activations") == put_out
    assert least(graph, "reads") == 2 * given


def test_what_is_built_costs_no_more_than_was_counted() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    for attributes in ({}, {"pads": [1, 2, 3, 4]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}):
        graph = one("Conv", (3, 12, 11), weight, **attributes)
        network = converted(graph.SerializeToString())
        activations = least(graph, "activations") + 3 * 12 * 11
        limits = LoadLimits(
            **{
                **UNLIMITED,
                "reads": least(graph, "reads"),
                "macs": least(graph, "macs"),
                "activations": activations,
            }
        )
        with torch.no_grad(), bounded_cost(network, (3, 12, 11), limits):
            network(torch.zeros(1, 3, 12, 11))


def test_constants_that_grow_when_they_are_folded_are_refused() -> None:
    nodes = [
        helper.make_node("Expand", ["row", "shape"], ["c"]),
        helper.make_node("Add", ["image", "c"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["out"]),
    ]
    constants = {
        "row": np.linspace(0, 1, 1300, dtype=np.float32).reshape(1, 1, 1, 1300),
        "shape": np.array([1, 3, 1300, 1300]),
    }
    graph = model(nodes, (3, 1300, 1300), constants)
    with pytest.raises(InputRejectedError, match=r"has 20\d+ bytes, of a file of \d+; at most"):
        converted(graph.SerializeToString())


def test_a_list_of_a_million_places_is_not_made() -> None:
    node = helper.make_node("Slice", ["image", "starts"], ["out"], "cut")
    for count in (64, 65):
        view = NodeView(
            node=node,
            constants={"starts": torch.zeros(count).long()},
            shapes={},
            types={},
            opset=17,
            batch=1,
        )
        if count == 64:
            assert view.integers("starts", 1) == [0] * 64
        else:
            with pytest.raises(InputRejectedError, match="'cut': starts has 65 numbers; 64 are"):
                view.integers("starts", 1)
