"""Files of quantised numbers that are read as float, and where that would be another network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from onnx_graphs import TOLERANCE, images, imported
from onnx_middles import network, node

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.quantised import QUANTISERS


def with_steps(step: float) -> ModelProto:
    """A network whose middle is rounded to whole steps, by one scale and zero point."""
    middle = (
        node("QuantizeLinear", ["r", "step", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "step", "zero"], ["m"]),
    )
    model = network(middle=middle)
    numbers = {"step": np.float32(step), "zero": np.array(0, np.uint8)}
    model.graph.initializer.extend(numpy_helper.from_array(n, k) for k, n in numbers.items())
    return model


def test_few_levels_in_use_are_another_network() -> None:
    """What rounds away dim images shows on dim images, and hardly on black, white and noise."""
    compared = imported(with_steps(0.25).SerializeToString()).comparison
    assert TOLERANCE < compared["compared_as_rounded"] < 0.05
    with pytest.raises(InputRejectedError, match=r"moves the answers by 0\.56 of what"):
        imported(with_steps(2).SerializeToString())


def test_scales_may_stand_behind_identities_and_casts() -> None:
    """PyTorch's older exporter writes so what was trained with fake quantisers."""
    plain, model = with_steps(0.25), with_steps(0.25)
    (zero,) = (one for one in model.graph.initializer if one.name == "zero")
    zero.CopyFrom(numpy_helper.from_array(np.array(0, np.int32), "zero"))
    for one in model.graph.node:
        if one.op_type in QUANTISERS:
            one.input[1:] = ["step_again", "zero_cast"]
    model.graph.node.insert(0, node("Cast", ["zero"], ["zero_cast"], to=TensorProto.UINT8))
    model.graph.node.insert(0, node("Identity", ["step"], ["step_again"]))
    expected, got = (imported(one.SerializeToString()) for one in (plain, model))
    pixels = images(2, got.shape)
    with torch.no_grad():
        assert torch.equal(got.module(pixels), expected.module(pixels))
