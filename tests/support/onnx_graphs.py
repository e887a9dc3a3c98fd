"""Small ONNX graphs written node by node, and what runs a file: ONNX Runtime, or its conversion."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.asked import NOTHING, Asked
from edgeclean.load.onnx.comparison import check_same, plain_images
from edgeclean.load.onnx.graph import read_model
from edgeclean.load.onnx.guard import parse_onnx
from edgeclean.load.onnx.importer import build_network, checked_model, converted_model, notes_of
from edgeclean.load.onnx.reference import answer_onnx
from edgeclean.networks.steps import StepNetwork

TOLERANCE = 1e-4
LIMITS = LoadLimits()
SIDE = 9  # of the images that graph() takes
WEIGHTS = {
    "w": np.random.default_rng(0).normal(size=(4, 3, 3, 2)).astype(np.float32),
    "wg": np.random.default_rng(1).normal(size=(6, 1, 3, 3)).astype(np.float32),
    "b": np.array([0.3, -0.2, 0.1, 0.5], np.float32),
    "s": np.array([0.9, 1.1, 0.7], np.float32),
    "v": np.array([0.5, 2.0, 1.2], np.float32),
    "slope": np.array([[[0.1]], [[0.2]], [[0.3]]], np.float32),
    "slopes": np.array([[[[0.1]], [[0.2]], [[0.3]]]], np.float32),
    "places": np.random.default_rng(8).normal(size=(3, SIDE, SIDE)).astype(np.float32),
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
    "wl": np.ones((3, 2, 3), np.float32),
    "two": np.ones((2, 3, 1, 1), np.float32),
    "ends_r": np.array([2]),
    "starts_r": np.array([0]),
    "pads_n": np.array([1, 0, 0, 0, 0, 0, 0, 0]),
    "flat": np.array([1, -1]),
    "scales": np.array([1, 1, 2, 3], np.float32),
    "third": np.array([1, 1, 0.34, 1.7], np.float32),
    "deep": np.array([1, 2, 1, 2], np.float32),
    "four": np.array([2, 1, 1, 1]),
    "widths": np.array([1, 0, 2, 1]),
    "zero_i": np.array(0),
    "minus_9": np.array([-9]),
    "ms": np.random.default_rng(6).normal(size=(5, SIDE)).astype(np.float32),
    "w4": np.random.default_rng(7).normal(size=(4, 3, 2, 2)).astype(np.float32),
    "wt": np.random.default_rng(5).normal(size=(3, 2, 3, 2)).astype(np.float32),
    "flip": np.array([2, -2, 0]),
    "rim": np.array([0, 0, 1, 2, 0, 0, 0, 1]),
    "minus": np.array([-1]),
    "groups": np.array([0, 3, SIDE * SIDE]),
}
# Operator, inputs, attributes.
Node = tuple[str, list[str], dict[str, Any]]
POOL: dict[str, Any] = {"kernel_shape": [3, 2], "strides": [2, 1]}
# Reshaped without its batch axis, which is right for one image only.
MIXED = [("Reshape", ["", "rows"], {}), ("Mul", ["", "image"], {})]


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


def relu_graph() -> ModelProto:
    return graph([("Conv", ["", "w", "b"], {}), ("Relu", [""], {})])


def images(count: int, shape: tuple[int, ...] = (3, 32, 32)) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def by_runtime(contents: bytes, pixels: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    runs = [session.run(None, {name: one[None].numpy()})[0] for one in pixels]
    return torch.from_numpy(np.concatenate(runs))


def converted(contents: bytes, limits: LoadLimits = LIMITS) -> StepNetwork:
    """Checked and converted in this process: the parsing process takes seconds to start."""
    checked = parse_onnx(contents, limits)
    assert checked is not None
    network = build_network(read_model(checked))
    return network.float().eval()  # type: ignore[return-value]


class Imported(NamedTuple):
    """What an import is, made in this process: its child processes take seconds to start."""

    module: StepNetwork
    shape: tuple[int, int, int]
    notes: tuple[str, ...]
    comparison: dict[str, float]


def imported(contents: bytes, asked: Asked = NOTHING, limits: LoadLimits = LIMITS) -> Imported:
    """All that `import_onnx` does, and its comparison with the file."""
    parsed = parse_onnx(contents, limits, asked)
    assert parsed is not None
    model = checked_model(parsed, limits)
    module, shape = converted_model(model)
    pixels = plain_images(shape, (0.5,), (0.25,))
    answers = answer_onnx(contents, pixels.numpy(), asked, limits)
    return Imported(module, shape, notes_of(model), check_same(module, pixels, answers))
