"""ONNX files as tools write them: each is brought to one form and answers as ONNX Runtime does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx_graphs import TOLERANCE, by_runtime, images, imported

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.asked import Asked
from edgeclean.load.onnx.comparison import check_same, plain_images
from edgeclean.load.onnx.reference import Answers

node = helper.make_node
SIDE, CLASSES, CHANNELS = 16, 5, 12


def weights(name: str, *shape: int) -> TensorProto:
    seed = sum(name.encode())
    numbers = np.random.default_rng(seed).normal(size=shape) / 5
    return numpy_helper.from_array(numbers.astype(np.float32), name)


def network(
    *,
    before: tuple[NodeProto, ...] = (),
    middle: tuple[NodeProto, ...] = (),
    shape: tuple[Any, ...] = ("n", 3, SIDE, SIDE),
    out: tuple[Any, ...] = ("n", CLASSES),
    opset: int = 13,
    extra: tuple[TensorProto, ...] = (),
) -> ModelProto:
    """A convolution, a mean over the plane, a linear layer; ``before`` ends in x, middle in m."""
    nodes = [
        *before,
        node("Conv", ["x" if before else "image", "w1", "b1"], ["c"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["c"], ["r"]),
        *middle,
        node("GlobalAveragePool", ["m" if middle else "r"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "w2", "b2"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, out)],
        [
            *(weights("w1", CHANNELS, 3, 3, 3), weights("b1", CHANNELS)),
            *(weights("w2", CLASSES, CHANNELS), weights("b2", CLASSES), *extra),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def assert_as_the_file(model: ModelProto, asked: Asked | None = None) -> tuple[str, ...]:
    contents = model.SerializeToString()
    module, shape, notes, _ = imported(contents, asked or Asked())
    assert shape == (3, SIDE, SIDE)
    pixels = images(3, shape)
    with torch.no_grad():
        got = module(pixels)
    assert got.shape == (3, CLASSES)
    expected = by_runtime(contents, pixels).flatten(1)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
    return notes


def test_a_plain_file_needs_no_word() -> None:
    assert assert_as_the_file(network()) == ()


# What the file says of its images.


def test_a_free_batch_may_be_written_as_minus_one() -> None:
    model = network(shape=(-1, 3, SIDE, SIDE), out=(-1, CLASSES))
    module, _, _, compared = imported(model.SerializeToString())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "n"
    pixels = images(2, (3, SIDE, SIDE))
    expected = by_runtime(model.SerializeToString(), pixels)
    torch.testing.assert_close(module(pixels).detach(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert {"compared", "compared_together"} == compared.keys()


@pytest.mark.parametrize("rows", ["Flatten", "Reshape", "Concat"])
def test_a_graph_for_eight_images_takes_any_number(rows: str) -> None:
    """Also where the number of images stands in the graph again, or constants have a row each."""
    model = network(shape=(8, 3, SIDE, SIDE), out=(8, CLASSES))
    if rows == "Reshape":
        (flatten,) = (one for one in model.graph.node if one.op_type == "Flatten")
        flatten.CopyFrom(node("Reshape", ["g", "rows"], ["f"]))
        model.graph.initializer.append(numpy_helper.from_array(np.array([8, -1]), "rows"))
    if rows == "Concat":
        plane = np.broadcast_to(np.float32(0.3), (8, CHANNELS, 2, 8))
        model = network(
            shape=(8, 3, SIDE, SIDE),
            out=(8, CLASSES),
            middle=(node("Concat", ["r", "k"], ["m"], axis=2),),
            extra=(numpy_helper.from_array(np.ascontiguousarray(plane), "k"),),
        )
    contents = model.SerializeToString()
    module, shape, _, compared = imported(contents)
    assert compared.keys() == {"compared"}
    pixels = images(8, shape)
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": pixels.numpy()})
    for count in (1, 3, 8):
        got = module(pixels[:count]).detach()
        torch.testing.assert_close(
            got, torch.from_numpy(expected[:count]), rtol=TOLERANCE, atol=TOLERANCE
        )


def test_a_constant_with_other_numbers_for_each_image_is_refused() -> None:
    """Such a graph gives an image another answer in another place of the batch."""
    plane = np.arange(8 * CHANNELS * 2 * 8, dtype=np.float32).reshape(8, CHANNELS, 2, 8)
    for middle in (
        node("Concat", ["r", "k"], ["m"], axis=2),
        node("Add", ["c", "row"], ["m"]),
    ):
        model = network(
            shape=(8, 3, SIDE, SIDE),
            out=(8, CLASSES),
            middle=(middle,),
            extra=(
                numpy_helper.from_array(plane, "k"),
                numpy_helper.from_array(plane[:, :1, :1, :1].copy(), "row"),
            ),
        )
        with pytest.raises(InputRejectedError, match=r"other numbers|changes the batch axis"):
            imported(model.SerializeToString())


def test_a_free_image_size_is_asked_for() -> None:
    model = network(shape=("n", 3, "h", "w"))
    with pytest.raises(InputRejectedError, match=r"\[n, 3, n, n\]; .* give --input-shape"):
        imported(model.SerializeToString())
    assert_as_the_file(model, Asked(input_shape=(3, SIDE, SIDE)))


TURN = node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2])
SCALED = (
    node("Mul", ["image", "scale"], ["scaled"]),
    node("Sub", ["scaled", "mean"], ["moved"]),
    node("Transpose", ["moved"], ["x"], perm=[0, 3, 1, 2]),
)


@pytest.mark.parametrize("before", [(TURN,), SCALED], ids=["turned", "scaled-and-turned"])
@pytest.mark.parametrize("free", [False, True])
def test_images_with_channels_last_are_taken_with_channels_first(
    before: tuple[NodeProto, ...], free: bool
) -> None:
    sides = ("h", "w") if free else (SIDE, SIDE)
    numbers = {"scale": [2.0], "mean": [0.1, 0.2, 0.3]}
    extra = [numpy_helper.from_array(np.array(n, np.float32), k) for k, n in numbers.items()]
    model = network(before=before, shape=("n", *sides, 3), extra=tuple(extra))
    contents = model.SerializeToString()
    asked = Asked(input_shape=(3, SIDE, SIDE) if free else None)
    module, shape, notes, _ = imported(contents, asked)
    assert shape == (3, SIDE, SIDE)
    assert "[n, height, width, channels] in the file" in notes[0]
    pixels = images(3, shape)
    expected = by_runtime(contents, pixels.permute(0, 2, 3, 1).contiguous())
    torch.testing.assert_close(module(pixels).detach(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    if before == (TURN,):
        assert next(type(layer).__name__ for layer in module.children()) == "Conv2d"


# What the file gives.


def with_output(model: ModelProto, name: str, *shape: Any) -> ModelProto:
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


def test_of_several_outputs_the_logits_are_taken() -> None:
    model = with_output(network(), "g", "n", CHANNELS, 1, 1)
    assert_notes = "output 'logits' is taken, 1 others are left"
    contents = model.SerializeToString()
    assert imported(contents).notes == (assert_notes,)
    assert imported(contents, Asked(classes=CLASSES)).notes == (assert_notes,)
    named = imported(contents, Asked(output="g"))
    assert named.module(images(2, (3, SIDE, SIDE))).shape == (2, CHANNELS)
    with pytest.raises(InputRejectedError, match="no output 'h'; it has 'logits', 'g'"):
        imported(contents, Asked(output="h"))


def test_probabilities_beside_their_logits_are_left() -> None:
    model = network()
    model.graph.node.append(node("Softmax", ["logits"], ["shares"]))
    model.graph.output.insert(0, helper.make_tensor_value_info("shares", TensorProto.FLOAT, None))
    assert "'logits' is taken" in imported(model.SerializeToString()).notes[0]


def test_two_heads_are_not_guessed_between() -> None:
    model = network()
    model.graph.node.append(node("Gemm", ["f", "w2"], ["other"], transB=1))
    contents = with_output(model, "other", "n", CLASSES).SerializeToString()
    with pytest.raises(InputRejectedError, match=r"2 outputs, 2 of them .* --arch onnx:NAME"):
        imported(contents, Asked(classes=CLASSES))
    assert imported(contents, Asked(output="other")).notes


def test_labels_beside_the_logits_are_left_and_alone_are_refused() -> None:
    model = network()
    model.graph.node.append(node("ArgMax", ["logits"], ["label"], axis=1))
    labels = helper.make_tensor_value_info("label", TensorProto.INT64, ["n", 1])
    model.graph.output.append(labels)
    assert imported(model.SerializeToString()).notes
    del model.graph.output[0]
    with pytest.raises(InputRejectedError, match="its answer is a label; export the network up to"):
        imported(model.SerializeToString())


def test_logits_of_planes_of_one_pixel_are_flat() -> None:
    model = network(out=("n", CLASSES, 1, 1))
    del model.graph.node[2:]
    model.graph.node.append(node("Conv", ["r", "w3"], ["d"]))
    model.graph.node.append(node("GlobalAveragePool", ["d"], ["logits"]))
    model.graph.initializer.append(weights("w3", CLASSES, CHANNELS, 1, 1))
    assert_as_the_file(model)


# How it was written.


@pytest.mark.parametrize("opset", [7, 8])
def test_old_opsets_are_raised(opset: int) -> None:
    model = network(opset=opset)
    model.ir_version = 3
    for tensor in model.graph.initializer:  # each weight was an input, too
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(value)
    assert assert_as_the_file(model) == (f"opset {opset} is raised to 9",)


@pytest.mark.parametrize(
    "domains",
    [
        ("ai.onnx.ml",),
        ("com.microsoft", "com.microsoft.nchwc", "ai.onnx.training"),
        ("pkg.onnxscript.torch_lib.common",),
    ],
)
def test_domains_that_no_operator_is_of_do_not_matter(domains: tuple[str, ...]) -> None:
    model = network()
    model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)
    assert_as_the_file(model)


def test_a_mask_that_nothing_reads_does_not_matter() -> None:
    drop = node("Dropout", ["r"], ["m", "mask"], ratio=0.5)
    assert_as_the_file(network(middle=(drop,), opset=9))


def test_a_constant_beside_a_value_is_joined_to_it() -> None:
    plane = np.full((1, CHANNELS, 4, 8), 9, np.float32)
    join = node("Concat", ["r", "k"], ["m"], axis=2)
    assert_as_the_file(network(middle=(join,), extra=(numpy_helper.from_array(plane, "k"),)))


WHOLE = {"s": [0, 3, 4, 64], "back": [0, CHANNELS, 8, 8], "zero": [0], "ones": [1, 1, 1]}
WHOLE |= {"one": [1], "two": [2], "three": [3]}


def parts(way: str, opset: int) -> list[NodeProto]:
    """The three entries of the first axis of t, as q, k and v, in one of the ways of exporters."""
    names = ("q", "k", "v")
    if way == "Gather":
        return [node("Gather", ["t", f"i{n}"], [name], axis=0) for n, name in enumerate(names)]
    squeezes = [
        node("Squeeze", [f"{name}1", "zero"], [name])
        if opset >= 13
        else node("Squeeze", [f"{name}1"], [name], axes=[0])
        for name in names
    ]
    if way == "Slice":
        bounds = ("zero", "one", "two", "three")
        cuts = [
            node("Slice", ["t", bounds[n], bounds[n + 1], "zero"], [f"{name}1"])
            for n, name in enumerate(names)
        ]
        return [*cuts, *squeezes]
    sizes = {"axis": 0} if opset >= 13 else {"axis": 0, "split": [1, 1, 1]}
    inputs = ["t", "ones"] if opset >= 13 else ["t"]
    return [node("Split", inputs, [f"{name}1" for name in names], **sizes), *squeezes]


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("way", ["Gather", "Slice", "Split"])
def test_an_axis_before_the_batch_is_taken_apart(way: str, opset: int) -> None:
    """As attention has its queries, keys and values."""
    middle = (
        node("Reshape", ["r", "s"], ["p"]),
        node("Transpose", ["p"], ["t"], perm=[1, 0, 3, 2]),
        *parts(way, opset),
        node("Mul", ["k", "v"], ["kv"]),
        node("Sub", ["q", "k"], ["qk"]),
        node("Concat", ["q", "kv", "qk"], ["joined"], axis=2),
        node("Transpose", ["joined"], ["turned"], perm=[0, 2, 1]),
        node("Reshape", ["turned", "back"], ["m"]),
    )
    numbers = {key: np.array(one, np.int64) for key, one in WHOLE.items()}
    numbers |= {f"i{n}": np.array(n) for n in range(3)}
    used = {name for one in middle for name in one.input}
    extra = [numpy_helper.from_array(one, key) for key, one in numbers.items() if key in used]
    assert_as_the_file(network(middle=middle, opset=opset, extra=tuple(extra)))


def fused(model: ModelProto, folder: Path) -> ModelProto:
    """The model as ONNX Runtime saves it after its own optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "fused.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    saved = ModelProto()
    saved.ParseFromString((folder / "fused.onnx").read_bytes())
    return saved


def test_operators_that_the_runtime_fused_are_read(tmp_path: Path) -> None:
    one, half, root = (
        numpy_helper.from_array(np.float32(number), name)
        for name, number in (("one", 1), ("half", 0.5), ("root", 2**0.5))
    )
    gelu = (
        node("Div", ["r", "root"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "one"], ["a"]),
        node("Mul", ["r", "a"], ["p"]),
        node("Mul", ["p", "half"], ["m"]),
    )
    model = fused(network(middle=gelu, extra=(one, half, root)), tmp_path)
    assert {one.op_type for one in model.graph.node} >= {"FusedConv", "Gelu"}
    assert "2 fused operators of com.microsoft" in assert_as_the_file(model)[0]


# Of what numbers it is.


def narrow(model: ModelProto, kind: int, *, ends: bool) -> ModelProto:
    """The model in other numbers; its input and output too, or behind a Cast each."""
    numbers = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(numbers), tensor.name)
        )
    if ends:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = kind
    return model


CASTS = (node("Cast", ["image"], ["x"], to=TensorProto.FLOAT16),)


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        (TensorProto.FLOAT16, True),
        (TensorProto.FLOAT16, False),
        (TensorProto.BFLOAT16, True),
        (TensorProto.DOUBLE, True),
    ],
)
def test_other_numbers_are_read_as_float32(kind: int, ends: bool) -> None:
    plain = network()
    model = narrow(network(before=() if ends else CASTS, opset=22), kind, ends=ends)
    if not ends:
        model.graph.node[-1].output[0] = "narrow"
        model.graph.node.append(node("Cast", ["narrow"], ["logits"], to=TensorProto.FLOAT))
    module, _, notes, compared = imported(model.SerializeToString())
    name = TensorProto.DataType.Name(kind).lower()
    assert notes == (f"{name} is read as float32",)
    assert compared["compared"] < TOLERANCE
    rounded = narrow(narrow(plain, kind, ends=False), TensorProto.FLOAT, ends=False)
    pixels = images(3, (3, SIDE, SIDE))
    expected = by_runtime(rounded.SerializeToString(), pixels)
    torch.testing.assert_close(module(pixels).detach(), expected, rtol=TOLERANCE, atol=TOLERANCE)


def quantised(model: ModelProto, *, zero: int, kind: type[np.generic]) -> ModelProto:
    """The model with 8-bit weights and activations, the ReLU left to the range of its quantiser."""
    scale, whole = np.float32(0.02), np.array(zero, kind)
    constants = {"s": scale, "z": whole, "sw": np.float32(0.01), "zw": np.array(0, np.int8)}
    weight = numpy_helper.to_array(model.graph.initializer[0])
    constants["w8"] = np.clip(np.rint(weight / 0.01), -128, 127).astype(np.int8)
    del model.graph.initializer[0]
    model.graph.initializer.extend(numpy_helper.from_array(n, k) for k, n in constants.items())
    relu = model.graph.node[1]
    relu.CopyFrom(node("QuantizeLinear", ["c", "s", "z"], ["q"]))
    model.graph.node.insert(2, node("DequantizeLinear", ["q", "s", "z"], ["r"]))
    model.graph.node.insert(0, node("DequantizeLinear", ["w8", "sw", "zw"], ["w1"]))
    return model


@pytest.mark.parametrize(("zero", "kind"), [(0, np.uint8), (-128, np.int8)])
def test_quantisers_are_read_as_their_range(zero: int, kind: type[np.generic]) -> None:
    model = quantised(network(), zero=zero, kind=kind)
    module, _, notes, compared = imported(model.SerializeToString())
    assert notes == (
        "1 quantised tensors are read as float, 1 activations keep their range and are rounded no "
        "more",
    )
    assert compared["compared"] < TOLERANCE
    assert TOLERANCE < compared["compared_as_rounded"] < 0.1
    values = torch.full((1, CHANNELS, 1, 1), -1.0)
    clip = next(layer for layer in module.children() if type(layer).__name__ == "Clamp")
    assert clip(values).min() == 0  # the ReLU that the quantiser stood for
    assert clip(-100 * values).max() == pytest.approx(255 * 0.02)


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8])
def test_a_quantiser_without_a_zero_point_has_the_range_of_its_output_type(kind: int) -> None:
    """Read as unsigned, a signed one was a ReLU that the graph has not."""
    model = quantised(network(), zero=0, kind=np.uint8)
    (zero,) = (one for one in model.graph.initializer if one.name == "z")
    model.graph.initializer.remove(zero)
    for one in model.graph.node:
        if "s" in one.input:
            one.input.remove("z")
    (into,) = (one for one in model.graph.node if one.op_type == "QuantizeLinear")
    into.attribute.append(helper.make_attribute("output_dtype", kind))
    model.opset_import[0].version, model.ir_version = 21, 10
    module, _, _, compared = imported(model.SerializeToString())
    assert compared["compared"] < TOLERANCE
    assert compared["compared_as_rounded"] < 0.1
    values = torch.full((1, CHANNELS, 1, 1), 100.0)
    clip = next(layer for layer in module.children() if type(layer).__name__ == "Clamp")
    signed = kind == TensorProto.INT8
    assert clip(-values).min() == pytest.approx(-128 * 0.02 if signed else 0.0)
    assert clip(values).max() == pytest.approx((127 if signed else 255) * 0.02)


def test_a_network_that_computes_by_rounding_is_refused() -> None:
    """A scale as large as the values makes steps of them: what is left without it is another."""
    model = quantised(network(), zero=0, kind=np.uint8)
    (scale,) = (one for one in model.graph.initializer if one.name == "s")
    scale.CopyFrom(numpy_helper.from_array(np.float32(3), "s"))
    with pytest.raises(InputRejectedError, match="does not answer as the quantised file does"):
        imported(model.SerializeToString())


# The comparison.


def broken(index: int) -> Callable[[torch.nn.Module], None]:
    def breaks(module: torch.nn.Module) -> None:
        with torch.no_grad():
            list(module.parameters())[index].mul_(1.01)

    return breaks


@pytest.mark.parametrize("index", range(4))
def test_an_import_that_answers_otherwise_is_refused(index: int) -> None:
    """Each weight by a hundredth, which is a hundred times what rounding makes."""
    contents = network().SerializeToString()
    module, shape, _, _ = imported(contents)
    pixels = plain_images(shape, (0.5,), (0.25,))
    answers = Answers(
        file=by_runtime(contents, pixels).numpy(), lifted=None, together=None, rounded=""
    )
    assert check_same(module, pixels, answers)["compared"] < TOLERANCE
    other = copy.deepcopy(module)
    broken(index)(other)
    with pytest.raises(InputRejectedError, match="does not answer as the file does"):
        check_same(other, pixels, answers)


@pytest.mark.parametrize("wrong", ["columns", "nan", "finite"])
def test_answers_of_another_form_are_a_difference(wrong: str) -> None:
    contents = network().SerializeToString()
    module, shape, _, _ = imported(contents)
    pixels = plain_images(shape, (0.5,), (0.25,))
    theirs = by_runtime(contents, pixels).numpy()
    theirs = theirs[:, :-1] if wrong == "columns" else theirs.copy()
    theirs[0, 0] = np.nan if wrong == "nan" else theirs[0, 0] + (wrong == "finite")
    answers = Answers(file=theirs, lifted=None, together=None, rounded="")
    with pytest.raises(InputRejectedError, match="does not answer as the file does"):
        check_same(module, pixels, answers)
