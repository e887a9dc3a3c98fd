"""Files of quantised numbers that are read as float, and where that would be another network."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from onnx_graphs import TOLERANCE, imported
from onnx_middles import network, node

from edgeclean.errors import InputRejectedError


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
    """What rounds away dim images moves the answers for black, white and noise by a third alone."""
    compared = imported(with_steps(0.25).SerializeToString()).comparison
    assert TOLERANCE < compared["compared_as_rounded"] < 0.05
    with pytest.raises(InputRejectedError, match="rounding moves the answers by 0.39 of what"):
        imported(with_steps(2).SerializeToString())
