"""ONNX files in: what they compute is kept to 1e-4; what a stranger hides in them is refused."""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from edgeclean.errors import InputRejectedError
from edgeclean.loading.architectures import build_architecture
from edgeclean.loading.checkpoint import load_checkpoint
from edgeclean.loading.input_guard import LoadLimits
from edgeclean.loading.onnx.files import embed_files
from edgeclean.loading.onnx.guard import COMPLETE, NEEDS_FILES, parse_onnx, read_model
from edgeclean.loading.onnx.importer import OnnxNetwork, build_network, check_batches, import_onnx
from edgeclean.loading.onnx.modules import Arithmetic
from edgeclean.states import LoadedNetwork, ModelSpec

SPEC = ModelSpec(
    architecture="onnx", input_shape=(3, 32, 32), classes=10, mean=(0.0,) * 3, std=(1.0,) * 3
)
TOLERANCE = 1e-4
LIMITS = LoadLimits()


def exported(module: nn.Module, *, keep_norm: bool = False, free_batch: bool = True) -> bytes:
    """The module as the TorchScript exporter writes it, which most published files are from."""
    stream = io.BytesIO()
    mode = torch.onnx.TrainingMode
    with warnings.catch_warnings():
        # The exporter is deprecated, and is what the files in the wild were made with.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", UserWarning)
        torch.onnx.export(
            module.eval(),
            (torch.zeros(1, 3, 32, 32),),
            stream,
            dynamo=False,
            opset_version=13,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}} if free_batch else None,
            training=mode.PRESERVE if keep_norm else mode.EVAL,
            do_constant_folding=not keep_norm,
        )
    return stream.getvalue()


def trained_like(name: str, seed: int = 0) -> nn.Module:
    """A table network whose BatchNorms have statistics and weights of their own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_architecture(name, SPEC, ())
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.3, 0.3),
                (layer.running_var, 0.5, 1.5),
                (layer.weight.data, 0.6, 1.2),
                (layer.bias.data, -0.2, 0.2),
            ):
                tensor.uniform_(low, high, generator=generator)
    return module.eval()


def images(count: int, shape: tuple[int, ...] = (3, 32, 32)) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def by_runtime(contents: bytes, pixels: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    runs = [session.run(None, {name: one[None].numpy()})[0] for one in pixels]
    return torch.from_numpy(np.concatenate(runs))


def loaded(contents: bytes, folder: Path, limits: LoadLimits = LIMITS) -> LoadedNetwork:
    """The whole way, with a parsing process (which takes seconds: few tests need it)."""
    path = folder / "network.onnx"
    path.write_bytes(contents)
    return load_checkpoint(path, SPEC, limits=limits)


def converted(contents: bytes, limits: LoadLimits = LIMITS) -> OnnxNetwork:
    """The same checks and conversion, in this process."""
    checked = parse_onnx(contents, limits)
    assert checked.startswith(COMPLETE)
    network = build_network(read_model(checked[1:]))
    return network.float().eval()  # type: ignore[return-value]


def assert_same(network: nn.Module, contents: bytes, shape: tuple[int, ...] = (3, 32, 32)) -> None:
    pixels = images(3, shape)
    expected = by_runtime(contents, pixels)
    with torch.no_grad():
        got = network(pixels)
    assert expected.abs().max() > 100 * TOLERANCE, "the reference says too little to compare with"
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


TABLE_NETS = [
    "resnet20",
    "cifar-vgg11-bn",
    "cifar-mobilenet-v2",
    "preact-resnet18",
    "wide-resnet-16-1",
]


@pytest.mark.parametrize("keep_norm", [False, True], ids=["norm-folded", "norm-kept"])
@pytest.mark.parametrize("name", TABLE_NETS)
def test_table_networks_come_back_as_they_were(name: str, keep_norm: bool) -> None:
    module = trained_like(name)
    contents = exported(module, keep_norm=keep_norm)
    network = converted(contents)
    assert_same(network, contents)
    if keep_norm:
        assert layer_kinds(network) == layer_kinds(module)


def layer_kinds(module: nn.Module) -> list[type[nn.Module]]:
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    return [type(layer) for layer in module.modules() if isinstance(layer, kinds)]


def test_whole_way_through_the_parsing_process(tmp_path: Path) -> None:
    module = trained_like("resnet20")
    contents = exported(module, keep_norm=True, free_batch=False)
    network = loaded(contents, tmp_path)
    assert_same(network.module, contents)
    (record,) = network.history
    assert record.stage == "load"
    assert record.macs == 40_551_040  # He et al.: 41M, as for the network that was exported
    assert "layer1_0_conv1" in dict(network.module.named_modules())
    twin = copy.deepcopy(network.module)
    with torch.no_grad():
        torch.testing.assert_close(twin(images(2)), network.module(images(2)))


# One operator at a time, against ONNX Runtime.

SIDE = 9
WEIGHTS = {
    "w": np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32),
    "wg": np.random.default_rng(1).normal(size=(6, 1, 3, 3)).astype(np.float32),
    "b": np.array([0.3, -0.2, 0.1, 0.5], np.float32),
    "s": np.array([0.9, 1.1, 0.7], np.float32),
    "v": np.array([0.5, 2.0, 1.2], np.float32),
    "slope": np.array([[[0.1]], [[0.2]], [[0.3]]], np.float32),
    "row": np.linspace(-1, 1, SIDE, dtype=np.float32),
    "one": np.array([[[[0.7]]]], np.float32),
    "m": np.random.default_rng(2).normal(size=(SIDE, 5)).astype(np.float32),
    "mt": np.random.default_rng(3).normal(size=(5, 3 * SIDE * SIDE)).astype(np.float32),
    "mf": np.random.default_rng(4).normal(size=(3 * SIDE * SIDE, 5)).astype(np.float32),
    "b5": np.linspace(-1, 1, 5, dtype=np.float32),
    "low": np.array(0.1, np.float32),
    "six": np.array(6, np.float32),
    "zero": np.array(0, np.float32),
    "pads": np.array([0, 1, 0, 2, 0, 0, 3, 1]),
    "one_i": np.array([1]),
    "starts": np.array([1, -5]),
    "ends": np.array([2**62, -1]),
    "axes": np.array([2, 3]),
    "steps": np.array([2, 1]),
    "rows": np.array([3, SIDE, SIDE]),
    "w1": np.ones((2, 3, 3), np.float32),
    "two": np.ones((2, 3, 1, 1), np.float32),
    "ends_r": np.array([2]),
    "starts_r": np.array([0]),
    "minus": np.array([-1]),
    "pads_n": np.array([1, 0, 0, 0, 0, 0, 0, 0]),
    "flat": np.array([1, -1]),
    "groups": np.array([0, 3, SIDE * SIDE]),
}
Node = tuple[str, list[str], dict[str, Any]]


def graph(nodes: list[Node], *, opset: int = 13, free_batch: bool = True) -> ModelProto:
    """A chain: "" among the inputs is the value so far; other names are of WEIGHTS."""
    built, value = [], "image"
    for index, (kind, inputs, attributes) in enumerate(nodes):
        names = [value if name == "" else name for name in inputs]
        names = ["" if name == "-" else name for name in names]
        value = f"value{index}"
        built.append(helper.make_node(kind, names, [value], f"step{index}", **attributes))
    used = {name for node in built for name in node.input}
    weights = [numpy_helper.from_array(WEIGHTS[name], name) for name in sorted(used & {*WEIGHTS})]
    batch = "n" if free_batch else 1
    model = helper.make_model(
        helper.make_graph(
            built,
            "graph",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    shape = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape
    output = helper.make_tensor_value_info(value, TensorProto.FLOAT, [None] * len(shape.dim))
    model.graph.output[0].CopyFrom(output)
    return model


MEANS: dict[str, Any] = {"axes": [2, 3]}
POOL: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 1]}
OPERATOR_CASES: dict[str, tuple[list[Node], int]] = {
    "conv": ([("Conv", ["", "w", "b"], {"strides": [2, 1], "dilations": [1, 2]})], 13),
    "conv-even-padding": ([("Conv", ["", "w"], {"pads": [1, 2, 1, 2]})], 13),
    "conv-uneven-padding": ([("Conv", ["", "w", "b"], {"pads": [0, 1, 2, 3]})], 13),
    "conv-same-upper": ([("Conv", ["", "w"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]})], 13),
    "conv-same-lower": ([("Conv", ["", "w"], {"auto_pad": "SAME_LOWER"})], 13),
    "conv-valid": ([("Conv", ["", "w"], {"auto_pad": "VALID"})], 13),
    "conv-groups": ([("Conv", ["", "wg"], {"group": 3})], 13),
    "norm": ([("BatchNormalization", ["", "s", "v", "s", "v"], {"epsilon": 0.01})], 13),
    "max-pool": ([("MaxPool", [""], {**POOL, "pads": [1, 0, 1, 0]})], 13),
    "max-pool-uneven": ([("MaxPool", [""], {**POOL, "pads": [0, 0, 1, 1]})], 13),
    "max-pool-ceil": ([("MaxPool", [""], {**POOL, "strides": [2, 3], "ceil_mode": 1})], 13),
    "mean-pool": ([("AveragePool", [""], {**POOL, "pads": [1, 0, 1, 0]})], 13),
    "mean-pool-counted": (
        [("AveragePool", [""], {**POOL, "pads": [0, 0, 1, 1], "count_include_pad": 1})],
        13,
    ),
    "global-pools": ([("GlobalMaxPool", [""], {}), ("Flatten", [""], {})], 13),
    "reduce-mean": ([("ReduceMean", [""], {**MEANS, "keepdims": 0})], 13),
    "reduce-mean-kept": ([("ReduceMean", [""], {"axes": [-1]})], 13),
    "reduce-mean-18": ([("ReduceMean", ["", "axes"], {})], 18),
    "leaky": ([("LeakyRelu", [""], {"alpha": 0.2})], 13),
    "elu": ([("Elu", [""], {"alpha": 0.5})], 13),
    "prelu": ([("PRelu", ["", "slope"], {})], 13),
    "sigmoid-swish": ([("Sigmoid", [""], {}), ("Mul", ["", "image"], {})], 13),
    "tanh": ([("Tanh", [""], {})], 13),
    "hard-sigmoid": ([("HardSigmoid", [""], {})], 13),
    "hard-sigmoid-sixth": ([("HardSigmoid", [""], {"alpha": 1 / 6})], 13),
    "hard-swish": ([("HardSwish", [""], {})], 14),
    "clip": ([("Clip", ["", "low"], {})], 13),
    "clip-relu6": ([("Clip", ["", "zero", "six"], {})], 13),
    "clip-9": ([("Clip", [""], {"min": -0.1, "max": 0.2})], 9),
    "add-constant": ([("Add", ["row", ""], {})], 13),
    "sub-constant-first": ([("Sub", ["one", ""], {})], 13),
    "div": ([("Add", ["", "one"], {}), ("Div", ["image", ""], {})], 13),
    "concat": ([("Relu", [""], {}), ("Concat", ["", "image"], {"axis": -3})], 13),
    "slice": ([("Slice", ["", "starts", "ends", "axes", "steps"], {})], 13),
    "slice-9": ([("Slice", [""], {"starts": [1], "ends": [-1], "axes": [1]})], 9),
    "pad": ([("Pad", ["", "pads", "low"], {})], 13),
    "pad-9": ([("Pad", [""], {"pads": [0, 0, 1, 0, 0, 1, 0, 2], "value": 0.5})], 9),
    "gemm": (
        [
            ("Flatten", [""], {}),
            ("Gemm", ["", "mt", "b5"], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        ],
        13,
    ),
    "matmul": ([("MatMul", ["", "m"], {}), ("Add", ["", "b5"], {})], 13),
    "matmul-flat": (
        [("Flatten", [""], {}), ("MatMul", ["", "mf"], {}), ("Add", ["", "b5"], {})],
        13,
    ),
    "reshape": ([("Reshape", ["", "groups"], {}), ("Transpose", [""], {"perm": [0, 2, 1]})], 13),
    "reshape-batch-1": ([("Reshape", ["", "flat"], {}), ("Relu", [""], {})], 13),
    "unsqueeze": ([("Unsqueeze", ["", "one_i"], {}), ("Squeeze", ["", "one_i"], {})], 13),
    "softmax": ([("Flatten", [""], {}), ("Softmax", [""], {})], 13),
    "log-softmax-11": ([("Flatten", [""], {}), ("LogSoftmax", [""], {})], 11),
    "dropout": ([("Dropout", [""], {}), ("Identity", [""], {}), ("Relu", [""], {})], 13),
}


@pytest.mark.parametrize("case", OPERATOR_CASES)
def test_operator_computes_what_the_runtime_computes(case: str) -> None:
    nodes, opset = OPERATOR_CASES[case]
    model = graph(nodes, opset=opset, free_batch=case != "reshape-batch-1")
    contents = model.SerializeToString()
    pixels = images(3, (3, SIDE, SIDE)) * 4 - 2
    expected = by_runtime(contents, pixels)
    with torch.no_grad():
        got = converted(contents)(pixels)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_linear_layer_from_matmul_and_add() -> None:
    nodes, _ = OPERATOR_CASES["matmul-flat"]
    network = converted(graph(nodes).SerializeToString())
    (layer,) = (layer for layer in network.children() if isinstance(layer, nn.Linear))
    torch.testing.assert_close(layer.bias.detach(), torch.from_numpy(WEIGHTS["b5"]))
    assert not any(isinstance(layer, Arithmetic) for layer in network.children())


# What a stranger hides.


def relu_graph() -> ModelProto:
    return graph([("Conv", ["", "w", "b"], {}), ("Relu", [""], {})])


def _with_function(model: ModelProto) -> None:
    model.functions.append(
        helper.make_function("f", "F", ["x"], ["y"], [], [helper.make_opsetid("", 13)])
    )


def _with_domain(model: ModelProto) -> None:
    model.graph.node[1].domain = "com.evil"


def _with_opset_domain(model: ModelProto) -> None:
    # A version that ONNX's own operators have, too: it is the domain that is refused.
    model.opset_import.append(helper.make_opsetid("com.evil", 13))


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


def _with_old_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 7


def _with_sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add()


HOSTILE: dict[str, tuple[Callable[[ModelProto], None], str]] = {
    "function": (_with_function, "holds functions"),
    "custom domain": (_with_domain, "Relu node 'step1': domain 'com.evil'"),
    "custom opset": (_with_opset_domain, "of domain 'com.evil'"),
    "loop": (_with_loop, "Loop node 'step1': the operator Loop is not supported"),
    "graph in a number": (_with_hidden_graph, "attribute 'alpha' is not a number"),
    "operator outside the list": (_with_unknown, "Einsum node 'step1'"),
    "terabytes claimed": (_with_huge_constant, "tensor 'w2': up to here the tensors claim"),
    "negative axis": (_with_negative_axis, "has shape [-4"),
    "strings": (_with_strings, "has element type 8"),
    "short weights": (_with_short_weights, "not a valid ONNX model"),
    "NaN": (_with_nan, "Conv node 'step0': input 1 has NaN or infinite numbers"),
    "two outputs": (_with_two_outputs, "1 inputs and 2 outputs"),
    "free sides": (_with_free_sides, "the last three fixed"),
    "cycle": (_with_cycle, "not a valid ONNX model"),
    "training mode": (_with_training_norm, "step1"),
    "old opset": (_with_old_opset, "opset 7"),
    "sparse": (_with_sparse, "sparse weights"),
}


MIXED = [("Reshape", ["", "rows"], {}), ("Mul", ["", "image"], {})]
UNSUPPORTED: dict[str, tuple[list[Node], int, str]] = {
    "two values in a product": ([("MatMul", ["", ""], {})], 13, "input 1 must be a constant"),
    "line convolution": (
        [("Reshape", ["", "groups"], {}), ("Conv", ["", "w1"], {})],
        13,
        "only convolutions of planes",
    ),
    "constant as a batch": ([("Add", ["", "two"], {})], 13, "changes the batch axis"),
    "uncounted uneven mean": (
        [("AveragePool", [""], {**POOL, "pads": [0, 0, 1, 1]})],
        13,
        "uneven padding that does not count",
    ),
    "uneven ceiling": (
        [("MaxPool", [""], {**POOL, "pads": [0, 0, 1, 1], "ceil_mode": 1})],
        13,
        "together with ceil_mode",
    ),
    "mean of all": ([("ReduceMean", [""], {})], 13, "no axes are given"),
    "mean over the batch": ([("ReduceMean", [""], {"axes": [0]})], 13, "axis 0 of 4"),
    "backwards": ([("Slice", ["", "ends_r", "starts_r", "one_i", "minus"], {})], 13, "below one"),
    "mirror": ([("Pad", ["", "pads"], {"mode": "reflect"})], 13, "only constant padding"),
    "padded batch": ([("Pad", ["", "pads_n"], {})], 13, "only constant padding"),
    "planes as rows": ([("Flatten", [""], {"axis": 2})], 13, "axis 2; 1 is supported"),
    "moved batch": ([("Transpose", [""], {"perm": [1, 0, 2, 3]})], 13, "moves the batch axis"),
    "old softmax": ([("Softmax", [""], {"axis": 1})], 11, "only the last axis"),
    "slopes per column": ([("PRelu", ["", "row"], {})], 13, "slopes of shape (9,)"),
    "mixed images": (MIXED, 13, "does not run on two images"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_cannot_be_converted_is_named(case: str) -> None:
    nodes, opset, message = UNSUPPORTED[case]
    with pytest.raises(InputRejectedError) as caught:
        check_batches(converted(graph(nodes, opset=opset).SerializeToString()), (3, SIDE, SIDE))
    assert message in str(caught.value)
    assert nodes is MIXED or f"{nodes[-1][0]} node" in str(caught.value)


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


CUT_SHORT = relu_graph().SerializeToString()[:-9]


@pytest.mark.parametrize("contents", [b"\xff" * 64, b"garbage", CUT_SHORT])
def test_bytes_that_are_no_model(contents: bytes) -> None:
    with pytest.raises(InputRejectedError):
        converted(contents)


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


def test_names_of_the_graph_become_plain_module_names() -> None:
    model = relu_graph()
    model.graph.node[0].name = "/a/a.0/__import__('os').system('x')/Conv"
    model.graph.node[1].name = "forward"
    names = [name for name, _ in converted(model.SerializeToString()).named_children()]
    assert names == ["a_0_import_os_system_x", "forward_1"]


# Weights in other files.


def external_model(folder: Path) -> bytes:
    """relu_graph with all its weights in ``weights.bin``."""
    model = relu_graph()
    blob = b""
    for tensor in model.graph.initializer:
        numbers = tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (
            ("location", "weights.bin"),
            ("offset", str(len(blob))),
            ("length", str(len(numbers))),
        ):
            tensor.external_data.add(key=key, value=entry)
        blob += numbers
    (folder / "weights.bin").write_bytes(blob)
    return model.SerializeToString()


def relocated(contents: bytes, key: str, entry: str) -> bytes:
    model = onnx.load_model_from_string(contents)
    for tensor in model.graph.initializer:
        for place in tensor.external_data:
            if place.key == key:
                place.value = entry
    return model.SerializeToString()


def test_external_weights_are_read_from_a_plain_file(tmp_path: Path) -> None:
    contents = external_model(tmp_path)
    assert parse_onnx(contents, LIMITS) == NEEDS_FILES
    imported = import_onnx(contents, LIMITS, folder=tmp_path)
    assert set(imported.external_sha256) == {"weights.bin"}
    pixels = images(2, (3, SIDE, SIDE))
    with torch.no_grad():
        expected = converted(relu_graph().SerializeToString())(pixels)
        torch.testing.assert_close(imported.module(pixels), expected)


@pytest.mark.parametrize(
    "location",
    ["../weights.bin", "/etc/passwd", "a/b", "..", "", "C:x", "a\\b", "x" * 300, "a\x1b"],
)
def test_external_weights_elsewhere_are_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    contents = external_model(tmp_path)  # weights.bin lies one folder up
    with pytest.raises(InputRejectedError, match="only a plain name"):
        parse_onnx(relocated(contents, "location", location), LIMITS)


def test_external_weights_behind_links_are_refused(tmp_path: Path) -> None:
    contents = external_model(tmp_path)
    embed_files(contents, tmp_path, LIMITS)
    secret = tmp_path / "secret"
    (tmp_path / "weights.bin").rename(secret)
    os.link(secret, tmp_path / "hard.bin")
    lone = tmp_path / "lone"  # with one link only: it is the symbolic one that is refused
    lone.write_bytes(secret.read_bytes())
    embed_files(relocated(contents, "location", "lone"), tmp_path, LIMITS)
    (tmp_path / "soft.bin").symlink_to(lone)
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "folder.bin").mkdir()
    for name in ("hard.bin", "soft.bin", "pipe.bin", "folder.bin", "missing.bin"):
        with pytest.raises(InputRejectedError, match=name):
            embed_files(relocated(contents, "location", name), tmp_path, LIMITS)


@pytest.mark.parametrize(
    ("key", "entry"), [("offset", "9999999"), ("offset", "-1"), ("length", "1"), ("length", "x")]
)
def test_external_sections_must_lie_in_the_file(key: str, entry: str, tmp_path: Path) -> None:
    contents = external_model(tmp_path)
    with pytest.raises(InputRejectedError, match=r"tensor '(w|b)'"):
        embed_files(relocated(contents, key, entry), tmp_path, LIMITS)


def test_external_files_count_towards_the_limit(tmp_path: Path) -> None:
    contents = external_model(tmp_path)
    size = (tmp_path / "weights.bin").stat().st_size
    embed_files(contents, tmp_path, LoadLimits(file_bytes=len(contents) + size))
    with pytest.raises(InputRejectedError, match="larger than the limit"):
        embed_files(contents, tmp_path, LoadLimits(file_bytes=len(contents) + size - 1))
