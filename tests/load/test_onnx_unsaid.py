"""What a file leaves unsaid, or says in rare places, a runtime finds out; so do we."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_graphs import TOLERANCE, by_runtime, images, imported
from onnx_middles import CHANNELS, SIDE, network, node


def assert_as(model: ModelProto, answering: ModelProto | None = None) -> None:
    """It is read, and answers as ONNX Runtime does for it, or for another that it stands for."""
    read, shape, _, _ = imported(model.SerializeToString())
    pixels = images(3, shape)
    expected = by_runtime((answering or model).SerializeToString(), pixels)
    with torch.no_grad():
        torch.testing.assert_close(read(pixels), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("unsaid", ["shape", "type"])
@pytest.mark.parametrize("batch", ["n", 1])
def test_an_output_may_have_no_declared(unsaid: str, batch: str | int) -> None:
    model = network(shape=(batch, 3, SIDE, SIDE))
    if unsaid == "type":
        model.graph.output[0].ClearField("type")
    else:
        model.graph.output[0].type.tensor_type.ClearField("shape")
    assert_as(model)


@pytest.mark.parametrize("taken", [False, True])
def test_what_a_branch_alone_reads_is_kept(taken: bool) -> None:
    """The branches of an ``If`` take values of the graph around them, by their names."""
    branches = {
        wanted: helper.make_graph(
            [node(kind, ["r"], [wanted])],
            wanted,
            [],
            [helper.make_tensor_value_info(wanted, TensorProto.FLOAT, None)],
        )
        for wanted, kind in (("then_branch", "Neg"), ("else_branch", "Tanh"))
    }
    model = network(middle=(node("If", ["taken"], ["m"], **branches),))
    model.graph.initializer.append(numpy_helper.from_array(np.array(taken), "taken"))
    assert_as(model)


def test_a_batch_may_have_a_name_in_the_oldest_opsets() -> None:
    """Where a channel's numbers lie along axis 1 because the node says so, not by their shape."""
    numbers = np.linspace(-1, 1, CHANNELS).astype(np.float32)
    old = network(middle=(node("Add", ["r", "k"], ["m"], axis=1, broadcast=1),), opset=6)
    old.graph.initializer.append(numpy_helper.from_array(numbers, "k"))
    (gemm,) = (one for one in old.graph.node if one.op_type == "Gemm")
    gemm.CopyFrom(node("Gemm", ["f", "w2", "k4"], ["logits"], transB=1, broadcast=1))
    new = network(middle=(node("Add", ["r", "k"], ["m"]),))
    new.graph.node[-1].input.append("k4")
    new.graph.initializer.append(numpy_helper.from_array(numbers.reshape(-1, 1, 1), "k"))
    for model in (old, new):
        model.graph.initializer.append(numpy_helper.from_array(numbers[:4], "k4"))
    assert_as(old, new)
