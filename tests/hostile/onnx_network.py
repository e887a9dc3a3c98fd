"""A good ONNX network, to be spoiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from hostile_case import compressing
from onnx import ModelProto, TensorProto, helper, numpy_helper

SIDE = 8
OPTIONS = (
    "--arch=onnx",
    f"--input-shape=3x{SIDE}x{SIDE}",
    "--classes=5",
    "--mean=0,0,0",
    "--std=1,1,1",
)
WEIGHTS = {
    "w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
    "b": np.zeros(4, np.float32),
    "m": np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32),
}


def network() -> ModelProto:
    """A convolution, a mean over the plane, a linear layer: good as it is."""
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["x"], "conv"),
        helper.make_node("Relu", ["x"], ["y"], "relu"),
        helper.make_node("GlobalAveragePool", ["y"], ["z"], "pool"),
        helper.make_node("Flatten", ["z"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "m"], ["logits"], "linear"),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
            [numpy_helper.from_array(numbers, name) for name, numbers in WEIGHTS.items()],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )


def compressed(folder: Path, model: ModelProto) -> list[str]:
    """The words that compress this model."""
    return compressing(folder, "a.onnx", model.SerializeToString(), *OPTIONS)


Change = Callable[[ModelProto], object]
