"""Graphs that move the batch, or have other axes than planes: equal to ONNX Runtime, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_graphs import imported
from torch import nn

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.einsum import product_of
from edgeclean.load.onnx.operators import OPERATORS

SHAPE = (3, 4, 5)  # of an image
RANDOM = np.random.default_rng(0)


class Graph:
    """A graph as it is written: each node takes the value so far first."""

    def __init__(self, opset: int = 17) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.opset = opset
        self.value = "image"

    def constant(self, numbers: Any) -> str:
        array = np.asarray(numbers)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        self.weights.append(numpy_helper.from_array(array, f"c{len(self.weights)}"))
        return self.weights[-1].name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"v{len(self.nodes)}"
        names = inputs if attributes.pop("alone", False) else (self.value, *inputs)
        self.nodes.append(helper.make_node(kind, names, [output], output, **attributes))
        self.value = output
        return output

    def reshape(self, *shape: int) -> str:
        return self.add("Reshape", self.constant(shape))

    def model(self, shape: tuple[int, ...] = SHAPE, batch: int | str = 1) -> ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, *shape])],
            [helper.make_tensor_value_info(self.value, TensorProto.FLOAT, None)],
            self.weights,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type
        sides = [None] * (len(inferred.shape.dim) or 2)
        output = helper.make_tensor_value_info(self.value, TensorProto.FLOAT, sides)
        model.graph.output[0].CopyFrom(output)
        return model


def check(graph: Graph, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    """Import as `import_onnx` does: equal to ONNX Runtime, and two images at once as alone."""
    made = imported(graph.model(shape).SerializeToString())
    assert made.comparison["compared"] <= 1e-4
    return made.module


def attention(graph: Graph, *, batch_at: int) -> None:
    """Queries, keys and values by one layer, heads split, multiplied and joined again."""
    graph.reshape(1, 3, 20)
    graph.add("Transpose", perm=[0, 2, 1])  # 20 tokens of 3
    graph.add("MatMul", graph.constant(RANDOM.normal(size=(3, 24))))
    if batch_at == 1:  # as nn.MultiheadAttention without batch_first does
        graph.add("Transpose", perm=[1, 0, 2])
        whole, parts = graph.value, []
        for start in (0, 8, 16):
            graph.value = whole
            bounds = [graph.constant([one]) for one in (start, start + 8, 2)]
            graph.add("Slice", *bounds)
            graph.reshape(20, 2, 4)  # heads beside images on one axis
            parts.append(graph.add("Transpose", perm=[1, 0, 2]))
    else:
        graph.reshape(1, 20, 3, 2, 4)
        whole, parts = graph.add("Transpose", perm=[2, 0, 3, 1, 4]), []
        for place in range(3):
            graph.value = whole
            parts.append(graph.add("Gather", graph.constant(place), axis=0))
    queries, keys, values = parts
    rank = 3 if batch_at == 1 else 4
    graph.value = keys
    graph.add("Transpose", perm=[*range(rank - 2), rank - 1, rank - 2])
    graph.add("MatMul", queries, graph.value, alone=True)
    graph.add("Softmax", axis=-1)
    graph.add("MatMul", values)
    if batch_at == 1:
        graph.add("Transpose", perm=[1, 0, 2])
        graph.reshape(20, 8)  # tokens beside images on one axis, for a Gemm
        graph.add("Gemm", graph.constant(RANDOM.normal(size=(8, 5))))
        graph.reshape(20, 1, 5)
        graph.add("Transpose", perm=[1, 0, 2])
    else:
        graph.add("Transpose", perm=[0, 2, 1, 3])
        graph.reshape(1, 20, 8)
    graph.add("ReduceMean", axes=[1], keepdims=0)


@pytest.mark.parametrize("batch_at", [0, 1])
def test_attention_in_either_order_of_axes(batch_at: int) -> None:
    graph = Graph()
    attention(graph, batch_at=batch_at)
    check(graph)


def test_stacked_values_are_joined_before_the_batch() -> None:
    graph = Graph()
    first = graph.add("Unsqueeze", graph.constant([0]))
    graph.value = "image"
    graph.add("Sigmoid")
    graph.add("Unsqueeze", graph.constant([0]))
    graph.add("Concat", first, axis=0)
    graph.add("ReduceMean", axes=[0], keepdims=0)
    graph.add("Flatten")
    check(graph)


def wandering(seed: int) -> Graph:
    """Random steps on a value whose batch stands anywhere, and back to [n, numbers]."""
    random = np.random.default_rng(seed)
    graph, shape, batch = Graph(), [1, *SHAPE], 0
    for _ in range(8):
        kind = random.integers(7)
        others = [axis for axis in range(len(shape)) if axis != batch]
        axis = int(random.choice(others))
        if kind == 0:
            order = [int(one) for one in random.permutation(len(shape))]
            graph.add("Transpose", perm=order)
            shape, batch = [shape[one] for one in order], order.index(batch)
        elif kind == 1:
            start = int(random.integers(len(shape)))
            sides = [side if random.integers(2) else 1 for side in shape[start:]]
            number = graph.constant(random.normal(size=sides))
            graph.add("Add", number)
        elif kind == 2:
            graph.add("Softmax", axis=axis)
        elif kind == 3 and len(others) > 2:
            graph.add("ReduceSum", graph.constant([axis]), keepdims=0)
            del shape[axis]
            batch -= axis < batch
        elif kind == 4 and shape[axis] < 20:
            graph.add("Concat", graph.value, axis=axis)
            shape[axis] *= 2
        elif kind == 5 and len(shape) < 6:
            graph.add("Unsqueeze", graph.constant([axis]))
            graph.add("Concat", graph.value, axis=axis)
            shape.insert(axis, 2)
            batch += axis <= batch
        elif kind == 6:
            taken = random.integers(-shape[axis], shape[axis], size=3)
            graph.add("Gather", graph.constant(taken), axis=axis)
            shape[axis] = 3
    graph.add("Transpose", perm=[batch, *(one for one in range(len(shape)) if one != batch)])
    graph.add("Flatten")
    return graph


@pytest.mark.parametrize("seed", range(16))
def test_a_batch_is_followed_wherever_it_wanders(seed: int) -> None:
    check(wandering(seed))


MIXING: dict[str, tuple[list[tuple[str, list[Any], dict[str, Any]]], str]] = {
    "the batch is reduced": (
        [("Transpose", [], {"perm": [1, 0, 2, 3]}), ("ReduceL2", [], {"axes": [1], "keepdims": 0})],
        "reduces the batch axis",
    ),
    "the batch is left behind another axis": (
        [("Transpose", [], {"perm": [1, 0, 2, 3]}), ("Relu", [], {})],
        "Relu node 'v1': it moves the batch axis to axis 1",
    ),
    "the images are the rows that are multiplied": (
        [
            ("Transpose", [], {"perm": [1, 2, 0, 3]}),
            ("MatMul", [np.ones((3, 4, 5, 2), np.float32)], {}),
        ],
        "MatMul node 'v1': the images are at different axes",
    ),
    "images are taken by GatherND": (
        [("GatherND", [[[0]]], {})],
        "GatherND node 'v0': it takes images of a batch",
    ),
}


@pytest.mark.parametrize("case", MIXING)
def test_a_graph_that_mixes_images_is_refused_with_the_way_out(case: str) -> None:
    nodes, message = MIXING[case]
    graph = Graph()
    for kind, constants, attributes in nodes:
        graph.add(kind, *(graph.constant(one) for one in constants), **attributes)
    with pytest.raises(InputRejectedError, match=message) as caught:
        check(graph)
    assert str(caught.value).endswith("keep the images along the first axis (batch_first=True)")


@pytest.mark.parametrize("indexed", [1, 2])
def test_constant_indices_of_moved_planes(indexed: int) -> None:
    """As PyTorch's newer exporter writes x[:, [2, 1, 0]] and an uneven adaptive pooling."""
    graph = Graph()
    order = [1, 0, 2, 3] if indexed == 1 else [2, 3, 0, 1]
    graph.add("Transpose", perm=order)
    indices = [[2], [0], [-1], [1]] if indexed == 1 else [[[0, 4], [-1, -5]], [[1, 2], [3, 0]]]
    graph.add("GatherND", graph.constant(indices))
    graph.add("Transpose", perm=[1, 0, 2, 3] if indexed == 1 else [2, 3, 0, 1])
    graph.add("Flatten")
    check(graph)


LINES: dict[str, tuple[str, list[tuple[int, ...]], dict[str, Any]]] = {
    "convolution": ("Conv", [(6, 3, 3), (6,)], {"pads": [1, 1], "strides": [2]}),
    "uneven convolution": ("Conv", [(6, 3, 4)], {"pads": [0, 3], "dilations": [2]}),
    "same-upper convolution": ("Conv", [(6, 1, 4)], {"auto_pad": "SAME_UPPER", "group": 3}),
    "same-lower convolution": ("Conv", [(6, 3, 4)], {"auto_pad": "SAME_LOWER", "strides": [3]}),
    "largest": ("MaxPool", [], {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    "mean": ("AveragePool", [], {"kernel_shape": [3], "pads": [1, 1]}),
    "mean with its rim": (
        "AveragePool",
        [],
        {"kernel_shape": [2], "strides": [3], "pads": [1, 1], "count_include_pad": 1},
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_windows_along_a_line(case: str) -> None:
    kind, shapes, attributes = LINES[case]
    graph = Graph()
    graph.reshape(1, 3, 20)
    graph.add(kind, *(graph.constant(RANDOM.normal(size=one)) for one in shapes), **attributes)
    graph.add("Flatten")
    module = check(graph)
    assert kind != "Conv" or any(isinstance(one, nn.Conv1d) for one in module.modules())


def test_a_mean_over_channels_alone() -> None:
    """As PyTorch's newer exporter writes nn.LocalResponseNorm."""
    graph = Graph()
    graph.reshape(1, 1, *SHAPE)
    graph.add("Pad", graph.constant([0, 0, 1, 0, 0, 0, 0, 1, 0, 0]))
    graph.add("AveragePool", kernel_shape=[3, 1, 1], strides=[1, 1, 1])
    graph.reshape(1, 60)
    check(graph)


def with_branch(decided: bool) -> Graph:
    """A squeeze of an axis that may be one, as PyTorch's older exporter writes it."""
    graph = Graph()
    before = graph.add("Unsqueeze", graph.constant([1 if decided else 2]))
    graph.add("Shape")
    graph.add("Gather", graph.constant(1), axis=0)
    condition = graph.add("Equal", graph.constant(1))
    if not decided:
        graph.value = before
        graph.add("ReduceMax", keepdims=0)
        condition = graph.add("Greater", graph.constant(0.5))
    axis = helper.make_node("Constant", [], ["axis"], value_ints=[1 if decided else 2])
    squeezed = helper.make_node("Squeeze", [before, "axis"], ["thin"])
    same = helper.make_node("Identity", [before], ["thick"])
    branches = {
        name: helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(output)])
        for name, nodes, output in (
            ("then_branch", [axis, squeezed], "thin"),
            ("else_branch", [same], "thick"),
        )
    }
    graph.add("If", condition, alone=True, **branches)
    graph.add("Flatten")
    return graph


def test_a_branch_that_shapes_decide_is_taken() -> None:
    check(with_branch(decided=True))


def test_a_branch_that_an_image_decides_is_refused() -> None:
    with pytest.raises(InputRejectedError, match=r"operator If is not supported; control flow"):
        check(with_branch(decided=False))


def test_what_stands_in_a_branch_is_checked_as_the_rest() -> None:
    graph = with_branch(decided=True)
    (node,) = (one for one in graph.nodes if one.op_type == "If")
    (branch,) = (one.g for one in node.attribute if one.name == "then_branch")
    branch.node[1].domain = "com.evil"
    with pytest.raises(InputRejectedError, match=r"domain 'com.evil'"):
        check(graph)


EQUATIONS = {
    "ncp,nop->nc": ((1, 3, 20), (1, 1, 20)),
    "nhqd,nhkd->nhqk": ((1, 3, 4, 5), (1, 3, 2, 5)),
    "nchw,oc->nohw": ((1, 3, 4, 5), (6, 3)),
    "oc, nchw -> nwho": ((6, 3), (1, 3, 4, 5)),
}


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_a_product_by_letters(equation: str, opset: int) -> None:
    graph = Graph(opset)
    shapes = EQUATIONS[equation]
    values = []
    for index, shape in enumerate(shapes):
        graph.value = "image"
        if shape[0] != 1:
            values.append(graph.constant(RANDOM.normal(size=shape)))
        elif np.prod(shape) == 60 and shape != (1, *SHAPE):
            values.append(graph.reshape(*shape))
        elif index == 0:
            values.append(graph.add("Sigmoid"))
        else:
            graph.reshape(1, 3, -1)
            starts, ends, axes = (graph.constant([one]) for one in (0, shape[1], 1))
            graph.add("Slice", starts, ends, axes)
            size = int(np.prod(shape[2:]))
            ends = [graph.constant([one]) for one in (0, size, 2)]
            graph.add("Slice", *ends)
            values.append(graph.reshape(*shape))
    graph.add("Einsum", *values, alone=True, equation=equation)
    graph.add("Flatten")
    check(graph)


@pytest.mark.parametrize(
    "equation", ["", "ab", "ab,bc", "aab,bc->ac", "...a,ab->...b", "abk,ackd->abcdk", "a,b,c->abc"]
)
def test_what_no_product_of_matrices_computes_is_left(equation: str) -> None:
    assert product_of(helper.make_node("Einsum", ["x", "y"], ["z"], equation=equation)) is None


def test_the_cost_of_a_product_by_letters_is_counted() -> None:
    graph = Graph()
    graph.add("Einsum", graph.constant(RANDOM.normal(size=(6, 3))), equation="nchw,oc->nohw")
    graph.add("Flatten")
    contents = graph.model().SerializeToString()
    imported(contents, limits=LoadLimits(macs=4 * 5 * 6 * 3))
    with pytest.raises(InputRejectedError, match=r"macs 359"):
        imported(contents, limits=LoadLimits(macs=4 * 5 * 6 * 3 - 1))


def test_a_refusal_is_one_short_line() -> None:
    graph = Graph()
    graph.add("GridSample", graph.constant(np.zeros((1, 4, 5, 2))))
    graph.add("Flatten")
    with pytest.raises(InputRejectedError, match="GridSample node 'v0'") as caught:
        check(graph)
    assert len(str(caught.value)) < 200
    graph.nodes[0].op_type = "Det"
    with pytest.raises(InputRejectedError, match=r"Det node 'v0'.*docs/guides") as caught:
        check(graph)
    assert len(str(caught.value)) < 200


def test_the_guide_lists_the_operators() -> None:
    """The refusal of another operator sends its reader there."""
    guide = Path(__file__).parents[2] / "docs" / "guides" / "own-network.md"
    listed = " ".join(guide.read_text().split())
    assert f"The operators that are read: {', '.join(sorted(OPERATORS))}." in listed


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("behind", ["MatMul", "Gemm", "turned Gemm"])
def test_a_matrix_times_turned_rows_is_these_times_the_matrix_turned(
    behind: str, trans: int
) -> None:
    """As exporters write ``(weight @ rows.t()).t()``."""
    graph = Graph()
    graph.reshape(1, 60)
    weight = RANDOM.normal(size=(60, 7) if trans and behind != "MatMul" else (7, 60))
    first, bias = graph.constant(weight), graph.constant(RANDOM.normal(size=(7, 1)))
    if behind != "turned Gemm":
        graph.add("Transpose", perm=[1, 0])
    inputs = (first, graph.value)
    if behind == "MatMul":
        graph.add("MatMul", *inputs, alone=True)
        graph.add("Add", bias)
    else:
        turns = {"transA": trans, "transB": int(behind == "turned Gemm")}
        graph.add("Gemm", *inputs, bias, alone=True, alpha=0.5, beta=2.0, **turns)
    graph.add("Transpose", perm=[1, 0])
    assert [type(one) for one in check(graph).modules()].count(nn.Linear) == 1


def test_rows_that_a_gemm_turns_back_are_rows_again() -> None:
    """As simplifiers join a Transpose with the layer behind it."""
    graph = Graph()
    graph.reshape(1, 60)
    graph.add("Transpose", perm=[1, 0])
    first = graph.constant(RANDOM.normal(size=(60, 60)))
    graph.add("MatMul", first, graph.value, alone=True)
    weight, bias = (graph.constant(RANDOM.normal(size=shape)) for shape in ((60, 7), (7,)))
    graph.add("Gemm", weight, bias, transA=1)
    assert [type(one) for one in check(graph).modules()].count(nn.Linear) == 2


@pytest.mark.parametrize(
    ("second", "bias", "why"),
    [((1, 60), (7, 1), "in each column"), ((60, 1), (7, 2), "in each column|to each image")],
)
def test_a_product_that_mixes_images_is_refused(
    second: tuple[int, int], bias: tuple[int, int], why: str
) -> None:
    graph = Graph()
    graph.reshape(2, 60)
    if second == (60, 1):
        graph.add("Transpose", perm=[1, 0])
    inner = 2 if second == (1, 60) else 60
    first = graph.constant(RANDOM.normal(size=(7, inner)))
    added = graph.constant(RANDOM.normal(size=bias))
    graph.add("Gemm", first, graph.value, added, alone=True)
    graph.add("Transpose", perm=[1, 0])
    with pytest.raises(InputRejectedError, match=why):
        imported(graph.model(SHAPE, 2).SerializeToString())
