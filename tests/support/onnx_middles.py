"""A small ONNX network around nodes of one's own: what they stand behind, and what follows them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

node = helper.make_node
SIDE, CHANNELS, CLASSES = 16, 8, 4
Numbers = dict[str, Any]  # of constants, by their names


def weights(name: str, *shape: int) -> TensorProto:
    numbers = np.random.default_rng(sum(name.encode())).normal(size=shape) / 5
    return numpy_helper.from_array(numbers.astype(np.float32), name)


HEAD = (
    node("GlobalAveragePool", ["m"], ["g"]),
    node("Flatten", ["g"], ["f"]),
    node("Gemm", ["f", "w2"], ["logits"], transB=1),
)


def network(
    *,
    before: tuple[NodeProto, ...] = (),
    middle: tuple[NodeProto, ...] = (),
    head: tuple[NodeProto, ...] = HEAD,
    numbers: Numbers | None = None,
    shape: tuple[Any, ...] = ("n", 3, SIDE, SIDE),
    out: tuple[Any, ...] = ("n", CLASSES),
    opset: int = 17,
) -> ModelProto:
    """``before`` makes x of the image, ``middle`` m of r, ``head`` logits of m."""
    colours = 1 if 1 in shape[1:] else 3
    nodes = [
        *before,
        node("Conv", ["x" if before else "image", "w1"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        *(middle or (node("Identity", ["r"], ["m"]),)),
        *head,
    ]
    constants = {name: np.array(one) for name, one in (numbers or {}).items()}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, out)],
        [
            *(weights("w1", CHANNELS, colours, 3, 3), weights("w2", CLASSES, CHANNELS)),
            weights("w2t", CHANNELS, CLASSES),
            *(
                numpy_helper.from_array(
                    one.astype(np.float32 if one.dtype == np.float64 else np.int64), name
                )
                for name, one in constants.items()
            ),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def exported(module: nn.Module, *, free: bool) -> bytes:
    """What PyTorch's older exporter writes, for one image or a free number of them."""
    stream = io.BytesIO()
    torch.onnx.export(
        module,
        (torch.zeros(1, 3, SIDE, SIDE),),
        stream,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}} if free else None,
        opset_version=17,
        dynamo=False,
    )
    return stream.getvalue()
