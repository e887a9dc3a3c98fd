"""ONNX graphs that are refused: what a stranger hides, what has no conversion, what is too big."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_graphs import MIXED, SIDE, WEIGHTS, Node, converted, graph, relu_graph
from onnx_middles import network

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.importer import check_batches


def _with_function(model: ModelProto) -> None:
    calls = [helper.make_node("F", ["x"], ["y"], domain="f")]
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("f", 1)]
    model.functions.append(helper.make_function("f", "F", ["x"], ["y"], calls, opsets))
    model.graph.node[1].op_type, model.graph.node[1].domain = "F", "f"


def _with_domain(model: ModelProto) -> None:
    model.graph.node[1].domain = "com.evil"


def _with_loop(model: ModelProto) -> None:
    model.graph.node[1].op_type = "Loop"


def _with_hidden_graph(model: ModelProto) -> None:
    attribute = helper.make_attribute("alpha", 1.0)
    attribute.g.CopyFrom(model.graph)
    model.graph.node[1].attribute.append(attribute)


def _with_unknown(model: ModelProto) -> None:
    model.graph.node[1].op_type = "Einsum"


def _with_huge_constant(model: ModelProto) -> None:
    tensor = TensorProto(name="w2", data_type=TensorProto.FLOAT, dims=[2**40])
    model.graph.initializer.append(tensor)


def _with_negative_axis(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def _with_whole_pixels(model: ModelProto) -> None:
    name = model.graph.input[0].name
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    for node in model.graph.node:
        for place, given in enumerate(node.input):
            if given == name:
                node.input[place] = "pixels"
    model.graph.node.insert(0, helper.make_node("Cast", [name], ["pixels"], to=TensorProto.FLOAT))


def _with_strings(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = TensorProto.STRING


def _with_short_weights(model: ModelProto) -> None:
    model.graph.initializer[1].raw_data = b"short"


def _with_nan(model: ModelProto) -> None:
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    broken = WEIGHTS["w"].copy()
    broken[1, 2, 0, 0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(broken, "w"))


def _with_two_outputs(model: ModelProto) -> None:
    model.graph.output.append(
        helper.make_tensor_value_info("value0", TensorProto.FLOAT, [None] * 4)
    )


def _with_free_sides(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"


def _with_cycle(model: ModelProto) -> None:
    model.graph.node[0].input[0] = "value1"


def _with_training_norm(model: ModelProto) -> None:
    model.opset_import[0].version = 14
    node = model.graph.node[1]
    node.op_type = "BatchNormalization"
    node.input.extend(["b", "b", "b", "b"])
    node.attribute.append(helper.make_attribute("training_mode", 1))


def _with_no_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 0


def _with_runtimes_own(model: ModelProto) -> None:
    model.graph.node[1].domain = "com.microsoft"
    model.graph.node[1].op_type = "QAttention"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _with_label(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("ArgMax", ["value1"], ["label"], "label", axis=1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("label", TensorProto.INT64, None))


def _with_whole_numbers(model: ModelProto) -> None:
    model.graph.node[0].op_type = "QLinearConv"


def _with_mask(model: ModelProto) -> None:
    """A Dropout's mask that is computed with."""
    drop = helper.make_node("Dropout", ["value1"], ["kept", "mask"], "drop")
    cast = helper.make_node("Cast", ["mask"], ["ones"], to=TensorProto.FLOAT)
    model.graph.node.extend([drop, cast, helper.make_node("Mul", ["kept", "ones"], ["masked"])])
    model.graph.output[0].name = "masked"


def _with_batch_statistics(model: ModelProto) -> None:
    """What a BatchNormalization of old opsets gives only in training."""
    norm = helper.make_node(
        "BatchNormalization", ["value1", "b", "b", "b", "b"], ["y", "mean", "var", "m", "v"], "norm"
    )
    model.opset_import[0].version = 9
    model.graph.node.append(norm)
    model.graph.output[0].name = "y"


def _with_sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add()


HOSTILE: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "function": (_with_function, "call each other more than 32 deep"),
    "custom domain": (_with_domain, "Relu node 'step1': domain 'com.evil'"),
    "fused by ONNX Runtime": (_with_runtimes_own, "domain 'com.microsoft'"),
    "label": (_with_label, "ArgMax node 'label': the operator ArgMax is not supported; its answer"),
    "no opset": (_with_no_opset, "opset 0 of domain ''"),
    "whole numbers": (_with_whole_numbers, "QLinearConv is not supported; quantise by Quantize"),
    "mask": (_with_mask, "Dropout node 'drop': more than one output is not supported"),
    "training statistics": (_with_batch_statistics, "it is in training mode"),
    "loop": (_with_loop, "Loop node 'step1': the operator Loop is not supported"),
    "graph in a number": (_with_hidden_graph, "attribute 'alpha' is not a number"),
    "operator outside the list": (_with_unknown, "Einsum node 'step1'"),
    "terabytes claimed": (_with_huge_constant, "tensor 'w2': up to here the tensors claim"),
    "negative axis": (_with_negative_axis, "has shape [-4"),
    "strings": (_with_strings, "has element type 8"),
    "whole pixels": (_with_whole_pixels, "without the Cast of whole numbers, and give what scales"),
    "short weights": (_with_short_weights, "not a valid ONNX model"),
    "NaN": (_with_nan, "Conv node 'step0': input 1 has NaN or infinite numbers"),
    "two outputs": (_with_two_outputs, "1 inputs and 2 outputs"),
    "free sides": (_with_free_sides, "the last three fixed"),
    "cycle": (_with_cycle, "not a valid ONNX model"),
    "training mode": (_with_training_norm, "step1"),
    "sparse": (_with_sparse, "sparse weights"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_graph_is_refused_by_name(case: str) -> None:
    change, message = HOSTILE[case]
    model = relu_graph()
    converted(model.SerializeToString())  # it is the change that is refused
    change(model)
    with pytest.raises(InputRejectedError) as caught:
        converted(model.SerializeToString())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


UNSUPPORTED: dict[str, tuple[list[Node], int, str]] = {
    "line convolution": (
        [("Reshape", ["", "groups"], {}), ("ConvTranspose", ["", "wl"], {})],
        13,
        "only convolutions of planes",
    ),
    "constant as a batch": ([("Add", ["", "two"], {})], 13, "changes the batch axis"),
    "mean of all": ([("ReduceMean", [""], {})], 13, "no axes are given"),
    "mean over the batch": ([("ReduceMean", [""], {"axes": [0]})], 13, "axis 0 of 4"),
    "cropped and resized": (
        [
            (
                "Resize",
                ["", "-", "scales"],
                {"coordinate_transformation_mode": "tf_crop_and_resize"},
            )
        ],
        13,
        "tf_crop_and_resize",
    ),
    "channels resized": ([("Resize", ["", "-", "deep"], {})], 13, "only height and width"),
    "column of a batch": ([("Gather", ["", "starts_r"], {"axis": 0})], 13, "axis 0 of 4"),
    "repeated batch": ([("Tile", ["", "four"], {})], 13, "repeats [2, 1, 1, 1]"),
    "rounded": ([("Cast", [""], {"to": 7}), ("Cast", [""], {"to": 1})], 13, "casts to float"),
    "even neighbourhood": ([("LRN", [""], {"size": 2})], 13, "it must be odd"),
    "odd mode": ([("Gelu", [""], {"approximate": "odd"})], 20, "none and tanh"),
    "mirror": ([("Pad", ["", "pads"], {"mode": "reflect"})], 13, "only constant padding"),
    "padded batch": ([("Pad", ["", "pads_n"], {})], 13, "only constant padding"),
    "moved batch": ([("Transpose", [""], {"perm": [1, 0, 2, 3]})], 13, "moves the batch axis"),
    "slopes of no axis": ([("PRelu", ["", "b"], {})], 13, "slopes of shape (4,)"),
    "slopes per image": ([("PRelu", ["", "two"], {})], 13, "slopes of shape (2, 3, 1, 1)"),
    "mixed images": (MIXED, 13, "does not run on two images"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_cannot_be_converted_is_named(case: str) -> None:
    nodes, opset, message = UNSUPPORTED[case]
    with pytest.raises(InputRejectedError) as caught:
        check_batches(converted(graph(nodes, opset=opset).SerializeToString()), (3, SIDE, SIDE))
    assert message in str(caught.value)
    assert nodes is MIXED or f"{nodes[-1][0]} node" in str(caught.value)


CUT_SHORT = relu_graph().SerializeToString()[:-9]


@pytest.mark.parametrize("contents", [b"\xff" * 64, b"garbage", CUT_SHORT])
def test_bytes_that_are_no_model(contents: bytes) -> None:
    with pytest.raises(InputRejectedError):
        converted(contents)


def test_a_choice_among_layers_is_not_told_as_a_label() -> None:
    """To export up to the logits is no way out where they lie behind it."""
    middle = (
        helper.make_node("ArgMin", ["r"], ["places"], "choice", axis=1, keepdims=1),
        helper.make_node("Cast", ["places"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["r", "numbers"], ["m"]),
    )
    with pytest.raises(
        InputRejectedError, match=r"'choice': the operator ArgMin .*; write it with"
    ):
        converted(network(middle=middle).SerializeToString())


@pytest.mark.parametrize("axes", [{}, {"axes": [0, 2, 3]}], ids=["by default", "said"])
def test_a_normalisation_that_would_mix_its_images_is_refused_with_the_way_out(
    axes: dict[str, list[int]],
) -> None:
    middle = (helper.make_node("MeanVarianceNormalization", ["r"], ["m"], **axes),)
    model = network(middle=middle)
    with pytest.raises(InputRejectedError, match="write it as an InstanceNormalization"):
        converted(model.SerializeToString())


def test_a_text_that_is_none_is_refused_wherever_it_stands() -> None:
    model = relu_graph()
    weight = numpy_helper.from_array(np.ones(432, np.float32), "QQ4")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="QQ5")
    model.graph.initializer.append(weight)
    model.graph.node[0].name = "QQ1"
    model.graph.node[0].attribute.append(helper.make_attribute("QQ2", [1, 2]))
    model.graph.node[0].output.append("QQ3")
    contents = model.SerializeToString()
    for place, field in enumerate(("name", "name", "output", "name", "value"), start=1):
        name = f"QQ{place}".encode()
        assert name in contents
        with pytest.raises(InputRejectedError, match=rf"bytes of a {field} are no text in UTF-8"):
            converted(contents.replace(name, b"\xff\xfe\xfd"))


def test_small_file_that_doubles_its_planes_without_end() -> None:
    doublings: list[Node] = [("Relu", [""], {})]
    doublings += [("Concat", ["", f"value{index}"], {"axis": 1}) for index in range(40)]
    with pytest.raises(InputRejectedError, match="activations"):
        converted(graph(doublings).SerializeToString())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (LoadLimits(onnx_nodes=1), "2 nodes; the limit onnx_nodes is 1"),
        (LoadLimits(entries=1), "2 tensors; the limit entries is 1"),
        (LoadLimits(macs=4 * 7 * 8 * 18 - 1), "Conv node 'step0'"),
        (LoadLimits(activations=4 * 7 * 8 * 2 - 1), "Relu node 'step1'"),
        (LoadLimits(file_bytes=10), "claim"),
    ],
)
def test_limits_of_a_graph_are_exact(limits: LoadLimits, message: str) -> None:
    with pytest.raises(InputRejectedError, match=message):
        converted(relu_graph().SerializeToString(), limits)


def test_limits_that_just_suffice() -> None:
    # 4 channels of 7 x 8 from 3 x 3 x 2 filters; convolution and ReLU put out one plane each.
    limits = LoadLimits(onnx_nodes=2, entries=2, macs=4 * 7 * 8 * 18, activations=4 * 7 * 8 * 2)
    converted(relu_graph().SerializeToString(), limits)
