"""ONNX graphs that hide code or cost."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_network import WEIGHTS, Change


def _relu(model: ModelProto) -> Any:
    return model.graph.node[1]


def _function(model: ModelProto) -> None:
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("evil", 1)]
    calls = [helper.make_node("F", ["x"], ["y"], domain="evil")]
    model.functions.append(helper.make_function("evil", "F", ["x"], ["y"], calls, opsets))
    _relu(model).op_type, _relu(model).domain = "F", "evil"


def _control_flow(kind: str) -> Change:
    def change(model: ModelProto) -> None:
        _relu(model).op_type = kind
        _relu(model).attribute.append(helper.make_attribute("body", model.graph))

    return change


def _graph_in_a_number(model: ModelProto) -> None:
    attribute = helper.make_attribute("alpha", 1.0)
    attribute.g.CopyFrom(model.graph)
    _relu(model).attribute.append(attribute)


def _cost(model: ModelProto) -> None:
    for index in range(40):
        before = "y" if index == 0 else f"y{index - 1}"
        node = helper.make_node("Concat", [before, before], [f"y{index}"], axis=1)
        model.graph.node.insert(2 + index, node)
    # What follows fits: it is refused for what it takes, and for nothing else.
    narrow = helper.make_node("ReduceMean", ["y39"], ["narrow"], axes=[1])
    model.graph.node.insert(42, narrow)
    model.graph.node.insert(43, helper.make_node("Concat", ["narrow"] * 4, ["four"], axis=1))
    model.graph.node[44].input[0] = "four"


def _arithmetic(model: ModelProto) -> None:
    """Padding makes planes of 2^20 pixels, and filters of a megabyte run over them."""
    pads = numpy_helper.from_array(np.array([0, 0, 2000, 2000, 0, 0, 2000, 2000]), "pads")
    model.graph.initializer.append(pads)
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.zeros((4, 3, 200, 200), np.float32), "w")
    )
    model.graph.node.insert(0, helper.make_node("Pad", ["image", "pads"], ["big"], "pad"))
    model.graph.node[1].input[0] = "big"


def _constant_of_shape(model: ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([2**20, 2**20]), "shape")
    model.graph.initializer.append(shape)
    fill = helper.make_node("ConstantOfShape", ["shape"], ["ones"], "fill")
    model.graph.node.insert(0, fill)
    model.graph.node.append(helper.make_node("Add", ["logits0", "ones"], ["logits"], "sum"))
    model.graph.node[5].output[0] = "logits0"


def _range(model: ModelProto) -> None:
    """The second of 2^40 numbers, added to the logits: to know it, all are counted out."""
    for name, number in (("zero", 0), ("many", 2**40), ("one", 1)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(number), name))
    model.graph.node.insert(0, helper.make_node("Range", ["zero", "many", "one"], ["r"], "range"))
    model.graph.node.insert(1, helper.make_node("Gather", ["r", "one"], ["second"], "gather"))
    cast = helper.make_node("Cast", ["second"], ["number"], "cast", to=TensorProto.FLOAT)
    model.graph.node.insert(2, cast)
    model.graph.node[-1].output[0] = "logits0"
    model.graph.node.append(helper.make_node("Add", ["logits0", "number"], ["logits"], "sum"))


def _announced(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    model.graph.node[-1].domain = "com.evil"


def _second_logits(model: ModelProto) -> None:
    """Logits, and others of as many classes: which of them is meant is not for us to guess."""
    model.graph.node.append(helper.make_node("Gemm", ["f", "m"], ["others"], "other"))
    others = helper.make_tensor_value_info("others", TensorProto.FLOAT, ["n", 5])
    model.graph.output.append(others)


def _claims(model: ModelProto) -> None:
    claim = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[2**20, 2**20])
    model.graph.initializer.append(claim)


def _many_nodes(model: ModelProto) -> None:
    for index in range(20_001):
        model.graph.node.append(helper.make_node("Relu", ["x"], [f"r{index}"]))


def _many_tensors(model: ModelProto) -> None:
    for index in range(20_001):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0), f"c{index}"))


def _large_image(model: ModelProto) -> None:
    """An image of a gigabyte, of which every 9,000th pixel is used."""
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 9000
    node = helper.make_node(
        "MaxPool", ["image"], ["small"], "pool0", kernel_shape=[1, 1], strides=[1100, 1100]
    )
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = "small"


def _padding(**attributes: Any) -> Change:
    """The convolution, padded; its stride skips what was added."""

    def change(model: ModelProto) -> None:
        conv = model.graph.node[0]
        del conv.attribute[:]
        conv.attribute.extend(helper.make_attribute(*one) for one in attributes.items())

    return change


def _large_windows(kind: str) -> Change:
    def change(model: ModelProto) -> None:
        for axis in (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 512
        windows = {"kernel_shape": [255, 255], "pads": [127] * 4}
        model.graph.node.insert(0, helper.make_node(kind, ["image"], ["big"], "pool0", **windows))
        model.graph.node[1].input[0] = "big"

    return change


def _looked_at_often(model: ModelProto) -> None:
    """Nine hundred means of one large plane, each a number, and no two of the same window."""
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 1000
    for index in range(900):
        window = [1000 - index % 30, 1000 - index // 30]
        sizes = {"kernel_shape": window, "strides": [1000, 1000]}
        model.graph.node.append(
            helper.make_node("AveragePool", ["image"], [f"mean{index}"], **sizes)
        )
        before = f"all{index - 1}" if index else "mean0"
        model.graph.node.append(helper.make_node("Add", [before, f"mean{index}"], [f"all{index}"]))
    last = helper.make_node("ReduceMean", ["all899"], ["all"], axes=[1, 2, 3], keepdims=0)
    model.graph.node.extend([last, helper.make_node("Add", ["logits0", "all"], ["logits"])])
    model.graph.node[4].output[0] = "logits0"


def _one_weight_for_all(model: ModelProto) -> None:
    """Three thousand layers with one weight of a megabyte, of which each has its own copy."""
    square = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32) / 30
    model.graph.initializer.append(numpy_helper.from_array(square, "square"))
    first = numpy_helper.from_array(np.ones((5, 512), np.float32), "first")
    last = numpy_helper.from_array(np.ones((512, 5), np.float32), "last")
    model.graph.initializer.extend([first, last])
    model.graph.node[4].output[0] = "logits0"
    model.graph.node.append(helper.make_node("MatMul", ["logits0", "first"], ["m0"]))
    for index in range(3000):
        model.graph.node.append(
            helper.make_node("MatMul", [f"m{index}", "square"], [f"m{index + 1}"])
        )
    model.graph.node.append(helper.make_node("MatMul", ["m3000", "last"], ["logits"]))


def _outer_product(model: ModelProto) -> None:
    """Two lines of 9,000 numbers make planes of 81 million."""
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 1
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 9000
    turned = helper.make_node("Transpose", ["image"], ["turned"], perm=[0, 1, 3, 2])
    product = helper.make_node("Mul", ["image", "turned"], ["plane"])
    pooled = helper.make_node(
        "MaxPool", ["plane"], ["small"], kernel_shape=[1, 1], strides=[1100, 1100]
    )
    for place, node in enumerate((turned, product, pooled)):
        model.graph.node.insert(place, node)
    model.graph.node[3].input[0] = "small"


def _weights(number: float) -> Change:
    def change(model: ModelProto) -> None:
        broken = WEIGHTS["w"].copy()
        broken[0, 0, 0, 0] = number
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "w"))

    return change


def _batch_mixed(model: ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([1, 5, -1]), "rows")
    model.graph.initializer.append(shape)
    model.graph.node[4].output[0] = "l"
    model.graph.node.append(helper.make_node("Reshape", ["l", "rows"], ["r"], "reshape"))
    model.graph.node.append(helper.make_node("Softmax", ["r"], ["logits"], "mix", axis=-1))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for _ in range(3):
        model.graph.output[0].type.tensor_type.shape.dim.add()


def _two_fields(model: ModelProto) -> None:
    """Zeros for who reads the bytes, and others for who reads the list."""
    model.graph.initializer[1].float_data.extend([9.0] * 4)


def _two_types(model: ModelProto) -> None:
    model.graph.initializer[1].int64_data.extend([9] * 4)


def _two_fields_in_an_attribute(model: ModelProto) -> None:
    bias = numpy_helper.from_array(np.zeros(4, np.float32))
    bias.float_data.extend([9.0] * 4)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["b2"], "bias", value=bias))
    model.graph.node[1].input[2] = "b2"


def _file_and_field(model: ModelProto) -> None:
    model.graph.initializer[1].external_data.add(key="location", value="b.bin")
    model.graph.initializer[1].data_location = TensorProto.EXTERNAL


def _segment(model: ModelProto) -> None:
    model.graph.initializer[1].segment.end = 2


def _one_name_twice(model: ModelProto) -> None:
    other = numpy_helper.from_array(np.full(4, 9, np.float32), "b")
    model.graph.initializer.append(other)


GRAPHS: list[tuple[str, str, Change, str]] = [
    (
        "function",
        "a function that calls itself: nodes without an end",
        _function,
        "in a circle",
    ),
    (
        "training graph",
        "steps that run when a trainer loads it",
        lambda m: m.training_info.add(),
        "training graphs",
    ),
    (
        "custom domain",
        "an operator from somebody's shared library",
        lambda m: setattr(_relu(m), "domain", "com.evil"),
        "domain 'com.evil'",
    ),
    (
        "custom opset",
        "the domain is announced, and one operator behind the others is of it",
        _announced,
        "Gemm node 'linear': domain 'com.evil'",
    ),
    ("loop", "runs for ever", _control_flow("Loop"), "operator Loop is not supported"),
    ("branch", "a part that only runs for the trigger", _control_flow("If"), "operator If is not"),
    ("scan", "the third kind of control flow", _control_flow("Scan"), "operator Scan is not"),
    (
        "graph in a number",
        "an attribute that says it is a number and holds a graph as well",
        _graph_in_a_number,
        "attribute 'alpha' is not a number",
    ),
    (
        "operator outside the list",
        "Einsum has a language of its own",
        lambda m: setattr(_relu(m), "op_type", "Einsum"),
        "operator Einsum is not supported",
    ),
    (
        "name that steers the terminal",
        "an operator's name with escape sequences",
        lambda m: (
            setattr(_relu(m), "op_type", "X\x1b[2J"),
            setattr(_relu(m), "name", "\x1b]0;x\x07"),
        ),
        r"X\\x1b\[2J",
    ),
    (
        "doubled planes",
        "forty concatenations: 2^40 channels from a kilobyte",
        _cost,
        "Concat node .*: up to here one image makes one operation hold .* the limit operands",
    ),
    (
        "dear arithmetic",
        "a padded plane under filters of 200 x 200",
        _arithmetic,
        "macs 100000000000",
    ),
    (
        "large image",
        "three outputs of an image of a gigabyte",
        _large_image,
        "the graph's input .* the limit operands is 67108864",
    ),
    (
        "uneven padding",
        "planes of 26,000 pixels a side, nearly all of them padding that a stride leaves out",
        _padding(pads=[13000, 13000, 12999, 12999], strides=[13000, 13000]),
        "Conv node 'conv': up to here .* the limits? ",
    ),
    (
        "uneven padding of a quarter",
        "a fifth of the numbers that all layers may have, yet in one",
        _padding(pads=[2600, 2600, 2599, 2599], strides=[2600, 2600]),
        "Conv node 'conv': up to here .* the limits? ",
    ),
    (
        "even padding",
        "the same, which no copy is made for, but in the library",
        _padding(pads=[13000] * 4, strides=[13000, 13000]),
        "Conv node 'conv': up to here .* the limit operands",
    ),
    (
        "SAME padding",
        "as much padding as a far step and a wide window need",
        _padding(auto_pad="SAME_UPPER", strides=[4, 4], dilations=[9000, 9000]),
        "Conv node 'conv': up to here .* the limits? ",
    ),
    (
        "windows of a pool",
        "50 thousand million comparisons for an image, and no multiplication",
        _large_windows("MaxPool"),
        "MaxPool node 'pool0': .* the limit reads is 1073741824",
    ),
    (
        "windows of an average",
        "50 thousand million additions",
        _large_windows("AveragePool"),
        "AveragePool node 'pool0': .* the limit reads is 1073741824",
    ),
    (
        "looked at often",
        "nine hundred operators that read much and put out a number",
        _looked_at_often,
        "the limit reads is 1073741824",
    ),
    (
        "one weight for all",
        "a megabyte that three thousand layers take, each a copy",
        _one_weight_for_all,
        "nodes take 10[0-9]+ bytes of constants",
    ),
    (
        "outer product",
        "two lines that make a plane",
        _outer_product,
        "Mul node .* 243027000 activations .* the limits are activations 134217728",
    ),
    (
        "terabytes by ConstantOfShape",
        "a constant that folding would make",
        _constant_of_shape,
        "ConstantOfShape node 'fill': .* the limit file_bytes is 1073741824",
    ),
    (
        "terabytes by Range",
        "2^40 numbers that folding would count out",
        _range,
        "it makes 1099511627776 numbers; at most",
    ),
    (
        "terabytes claimed",
        "4 TB of weights in shape, nothing in the file",
        _claims,
        "claim 4398046511",
    ),
    ("20,001 nodes", "one over the limit", _many_nodes, "limit onnx_nodes is 20000"),
    ("20,001 tensors", "one over the limit", _many_tensors, "limit entries is 20000"),
    (
        "negative shape",
        "a weight of -4 channels",
        lambda m: m.graph.initializer[0].dims.__setitem__(0, -4),
        r"has shape \[-4",
    ),
    (
        "texts as weights",
        "a tensor of strings",
        lambda m: setattr(m.graph.initializer[0], "data_type", TensorProto.STRING),
        "has element type 8",
    ),
    (
        "short weights",
        "five bytes where a shape needs more",
        lambda m: setattr(m.graph.initializer[0], "raw_data", b"short"),
        "not a valid ONNX model",
    ),
    ("NaN", "one weight is NaN", _weights(float("nan")), "NaN or infinite"),
    ("infinity", "one weight is infinite", _weights(float("inf")), "NaN or infinite"),
    (
        "sparse weights",
        "indices without bounds",
        lambda m: m.graph.sparse_initializer.add(),
        "sparse weights",
    ),
    (
        "cycle",
        "a node that waits for itself",
        lambda m: m.graph.node[0].input.__setitem__(0, "f"),
        "not a valid ONNX model",
    ),
    (
        "two outputs",
        "logits, and a second output for somebody else",
        _second_logits,
        "2 outputs",
    ),
    (
        "free axes",
        "cost that depends on what comes later",
        lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
        "not a valid ONNX model .*shape",
    ),
    (
        "opset 1",
        "old operators with other meanings",
        lambda m: setattr(m.opset_import[0], "version", 1),
        r"not a valid ONNX model .*schema\(::Gemm:1\)",
    ),
    (
        "opset 999",
        "operators of the future",
        lambda m: setattr(m.opset_import[0], "version", 999),
        "opset 999",
    ),
    (
        "mixed batch",
        "an image's answer depends on its neighbour",
        _batch_mixed,
        "does not run on two images",
    ),
    (
        "two data fields",
        "a scanner looks at one set of numbers, the runtime at the other",
        _two_fields,
        r"tensor 'b' has its numbers in raw_data and float_data",
    ),
    (
        "two data fields of two types",
        "the second one is of whole numbers",
        _two_types,
        r"tensor 'b' has its numbers in raw_data and int64_data",
    ),
    (
        "two data fields in an attribute",
        "the same in a constant node",
        _two_fields_in_an_attribute,
        r"has its numbers in raw_data and float_data",
    ),
    (
        "numbers in a field and in a file",
        "which of them a reader takes is its own affair",
        _file_and_field,
        r"tensor 'b' has its numbers in raw_data and a file beside the model",
    ),
    (
        "a part of a tensor",
        "a segment: the rest would stand elsewhere",
        _segment,
        r"tensor 'b' has its numbers in a segment",
    ),
    (
        "two tensors of one name",
        "the last or the first one counts, by reader",
        _one_name_twice,
        r"2 tensors called 'b'",
    ),
    (
        "another image shape",
        "the graph takes other images than it is said to",
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[3], "dim_value", 4096),
        "the graph takes images of 3x8x4096, and 3x8x8 was said",
    ),
]
