"""What the parsing process answers is a stranger's word too: graphs that nothing simplified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxsim
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_graphs import LIMITS, MIXED, SIDE, WEIGHTS, Node, by_runtime, graph, images, relu_graph
from torch import Tensor, nn

from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError
from edgeclean.load.isolation import with_limits
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx import importer
from edgeclean.load.onnx.asked import FILE
from edgeclean.load.onnx.cost import check_cost
from edgeclean.load.onnx.guard import parse_onnx
from edgeclean.load.onnx.importer import (
    build_network,
    check_batches,
    convert_checked,
    import_onnx,
)


def built(model: ModelProto) -> nn.Module:
    """Converted without the parsing process and its simplifier."""
    return build_network(onnx.shape_inference.infer_shapes(model)).float().eval()


FLAT: Node = ("Flatten", [""], {})
AS_IT_STANDS: dict[str, list[Node]] = {
    "matmul": [("MatMul", ["", "m"], {})],
    "matmul-flat": [FLAT, ("MatMul", ["", "mf"], {})],
    "gemm": [FLAT, ("Gemm", ["", "mf"], {})],
    "gemm-one-bias": [FLAT, ("Gemm", ["", "mf", "six"], {})],
    "dropout": [("Dropout", [""], {}), ("Identity", [""], {})],
}


@pytest.mark.parametrize("case", AS_IT_STANDS)
def test_operators_that_the_simplifier_rewrites_compute_the_same(case: str) -> None:
    model = graph(AS_IT_STANDS[case])
    pixels = images(2, (3, SIDE, SIDE))
    with torch.no_grad():
        got = built(model)(pixels)
    torch.testing.assert_close(got, by_runtime(model.SerializeToString(), pixels))


def test_constants_that_stand_in_nodes() -> None:
    model = graph([("Add", ["", "row"], {}), ("Mul", ["", "one"], {}), ("Add", ["", "low"], {})])
    row = model.graph.initializer[[one.name for one in model.graph.initializer].index("row")]
    one = float(WEIGHTS["one"].item())
    kept = [tensor for tensor in model.graph.initializer if tensor.name == "low"]
    constants = [
        helper.make_node("Constant", [], ["row"], value=row),
        helper.make_node("Constant", [], ["one"], value_float=one),
    ]
    plain = model.SerializeToString()
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(kept)
    nodes = [*constants, *model.graph.node]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    pixels = images(2, (3, SIDE, SIDE))
    with torch.no_grad():
        torch.testing.assert_close(built(model)(pixels), by_runtime(plain, pixels))


def with_output(name: str) -> Callable[[ModelProto], None]:
    return lambda model: model.graph.node[-1].output.append(name)


def without_attributes(model: ModelProto) -> None:
    model.graph.node[-1].ClearField("attribute")


def with_short_weights(model: ModelProto) -> None:
    next(one for one in model.graph.initializer if one.name == "w").raw_data = b"short"


def from_constants(model: ModelProto) -> None:
    model.graph.node[-1].input[0] = "row"
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS["row"], "row"))


def unchanged(model: ModelProto) -> None:
    pass


NORM = ("BatchNormalization", ["", "s", "v", "s", "v"])
REFUSED: dict[str, tuple[list[Node], Callable[[ModelProto], None], str]] = {
    "not folded": (
        [("ScatterElements", ["", "place", "number"], {})],
        unchanged,
        "it works on the image here, and is read only where",
    ),
    "second output": ([("Dropout", [""], {})], with_output("mask"), "more than one output"),
    "no image": ([("Relu", [""], {}), ("Relu", [""], {})], from_constants, "depend on the image"),
    "constant too many": ([("Relu", ["", "row"], {})], unchanged, "input 1 is a constant, which"),
    "no axis": (
        [("Concat", ["", "image"], {"axis": 1})],
        without_attributes,
        "cannot be converted (",
    ),
    "damaged weights": ([("Conv", ["", "w"], {})], with_short_weights, "tensor 'w' is damaged"),
    "groups": ([("Conv", ["", "w"], {"group": 3})], unchanged, "group 3 does not divide 4"),
    "no groups": ([("Conv", ["", "w"], {"group": 0})], unchanged, "group 0 does not divide 4"),
    "strides": ([("Conv", ["", "w"], {"strides": [0, 1]})], unchanged, "strides is [0, 1]; two"),
    "one stride": ([("Conv", ["", "w"], {"strides": [1]})], unchanged, "strides is [1]; two"),
    "no kernel": ([("MaxPool", [""], {})], unchanged, "kernel_shape is None; two"),
    "pads": ([("Conv", ["", "w"], {"pads": [0, 0, -1, 0]})], unchanged, "pads are [0, 0, -1, 0]"),
    "two pads": ([("Conv", ["", "w"], {"pads": [1, 1]})], unchanged, "pads are [1, 1]; four"),
    "bias of a convolution": (
        [("Conv", ["", "w", "s"], {})],
        unchanged,
        "bias has shape (3,); (4,) would fit",
    ),
    "statistics": (
        [(NORM[0], ["", "s", "v", "b", "v"], {})],
        unchanged,
        "running_mean has shape (4,); (3,)",
    ),
    "norm in training": ([(*NORM, {"training_mode": 1})], unchanged, "in training mode"),
    "dropout in training": ([("Dropout", ["", "low", "yes"], {})], unchanged, "in training mode"),
    "transposed input": (
        [FLAT, ("Gemm", ["", "mf"], {"transA": 1})],
        unchanged,
        "a transposed input",
    ),
    "line as a matrix": ([FLAT, ("Gemm", ["", "b5"], {})], unchanged, "a matrix of 1 axes; 2"),
    "number as a matrix": ([("MatMul", ["", "low"], {})], unchanged, "a matrix of 0 axes; 2"),
    "cube as a matrix": ([("MatMul", ["", "w1"], {})], unchanged, "a matrix of 3 axes; 2"),
    "bias of a matrix": (
        [FLAT, ("Gemm", ["", "mf", "b"], {})],
        unchanged,
        "a bias of shape (4,); one number",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_node_that_cannot_be_converted_is_named(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, change, message = REFUSED[case]
    monkeypatch.setitem(WEIGHTS, "yes", np.array(True))
    monkeypatch.setitem(WEIGHTS, "place", np.zeros((1, 1, 1, 1), np.int64))
    monkeypatch.setitem(WEIGHTS, "number", np.ones((1, 1, 1, 1), np.float32))
    model = graph(nodes)
    change(model)
    with pytest.raises(InputRejectedError) as caught:
        built(model)
    assert message in str(caught.value)
    assert ("tensor 'w'" in message) or f"node 'step{len(nodes) - 1}': " in str(caught.value)


# The parent looks at the answer as at the file.


def with_files(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def with_loop(model: ModelProto) -> None:
    model.graph.node[1].op_type = "Loop"


@pytest.mark.parametrize(
    ("change", "limits", "message"),
    [
        (with_files, LIMITS, "the simplified graph refers to other files"),
        (with_loop, LIMITS, "the operator Loop is not supported"),
        (unchanged, LoadLimits(macs=1), "the limits are activations"),
    ],
)
def test_the_answer_of_the_parsing_process_is_not_trusted(
    change: Callable[[ModelProto], None],
    limits: LoadLimits,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = onnx.shape_inference.infer_shapes(graph(RELU, free_batch=False))
    answer = model.SerializeToString()
    monkeypatch.setattr(importer, "parse_isolated", lambda *_: Parcel(files={FILE: answer}))
    assert convert_checked(answer, LIMITS)[1] == (3, SIDE, SIDE)
    change(model)
    answer = model.SerializeToString()
    with pytest.raises(InputRejectedError, match=message):
        import_onnx(b"", limits, folder=tmp_path)


RELU: list[Node] = [("Conv", ["", "w", "b"], {}), ("Relu", [""], {})]


# Costs.


def test_a_shape_that_depends_on_the_image_is_refused() -> None:
    shape: list[Node] = [
        ("Reshape", ["", "minus"], {}),
        ("Slice", ["", "starts_r", "ends_r"], {}),
        ("Cast", [""], {"to": TensorProto.INT64}),
        ("Reshape", ["image", ""], {}),
    ]
    model = graph(shape)
    said = helper.make_tensor_value_info(model.graph.output[0].name, TensorProto.FLOAT, [None] * 2)
    model.graph.output[0].CopyFrom(said)
    with pytest.raises(InputRejectedError, match=r"'step3': the shape of its output is not fixed"):
        parse_onnx(model.SerializeToString(), LIMITS)


def test_a_shape_that_is_not_said_is_refused() -> None:
    model = onnx.shape_inference.infer_shapes(graph(RELU, free_batch=False))
    check_cost(model, LIMITS)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputRejectedError, match="'step1': the shape of its output is not fixed"):
        check_cost(model, LIMITS)


def test_memory_that_does_not_suffice_is_the_childs_to_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhaust(*_: object, **__: object) -> Any:
        raise MemoryError

    monkeypatch.setattr(onnxsim, "simplify", exhaust)
    with pytest.raises(MemoryError):
        parse_onnx(relu_graph().SerializeToString(), LIMITS)


# Batches.


class Centred(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels - pixels.mean(dim=0, keepdim=True)


class Summed(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.sum(dim=0, keepdim=True)


class Infinite(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels / 0 - pixels / 0


def test_a_graph_that_mixes_its_images_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        importer, "parse_isolated", lambda task, given, limits: task(with_limits(given, limits))
    )
    with pytest.raises(InputRejectedError, match="does not run on two images"):
        import_onnx(graph(MIXED).SerializeToString(), LIMITS, folder=tmp_path)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Centred(), "mixes the images of a batch"),
        (Summed(), "mixes the images of a batch"),
        (Infinite(), "is not finite: it divides by 0"),
    ],
)
def test_a_network_that_mixes_its_images_is_refused(module: nn.Module, why: str) -> None:
    check_batches(nn.Flatten(), (3, 4, 4))
    with pytest.raises(InputRejectedError, match=why):
        check_batches(module, (3, 4, 4))
