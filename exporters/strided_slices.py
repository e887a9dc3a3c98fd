"""Every second row and column, as a pooling window of one pixel: the same numbers.

ResNets of CIFAR take them in their shortcuts (option A of He et al., 2016, equation 1) by a Slice
with steps, which ncnn lacks. A window of 1x1 with a stride has one number in it, which is the
largest.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporters.onnx_check import drop_unread, open_onnx

ROWS, COLUMNS = 2, 3  # the axes of an image [n, c, h, w]
WHOLE = 2**31 - 1  # what exporters write for "to the end"; 2**63 - 1 too


def pooled_slices(model: bytes) -> bytes:
    """The file with each Slice of whole rows and columns with steps as a MaxPool of 1x1.

    A Slice that begins or ends within the image stays as it is.

    Args:
        model: an ONNX file at opset 11 or above.

    Returns:
        The file; the same bytes where there is no such Slice.

    Raises:
        InputRejectedError: it is not plain, valid ONNX.
    """
    proto = open_onnx(model)
    constants = {one.name: one for one in proto.graph.initializer}
    changed = False
    for node in proto.graph.node:
        strides = _strides(node, constants)
        if strides is not None:
            pool = helper.make_node(
                "MaxPool",
                [node.input[0]],
                [node.output[0]],
                name=node.name,
                kernel_shape=[1, 1],
                strides=strides,
            )
            node.CopyFrom(pool)
            changed = True
    if not changed:
        return model
    drop_unread(proto)
    contents: bytes = proto.SerializeToString(deterministic=True)
    open_onnx(contents)
    return contents


def _strides(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[int] | None:
    """The steps over rows and columns of such a Slice; None for any other node."""
    if node.op_type != "Slice" or len(node.input) != 5:
        return None
    if not all(name in constants for name in node.input[1:]):
        return None
    given = (numpy_helper.to_array(constants[name]).reshape(-1) for name in node.input[1:])
    starts, ends, axes, steps = (np.asarray(one, np.int64).tolist() for one in given)
    by_axis = {axis % 4: step for axis, step in zip(axes, steps, strict=True)}
    whole = all(start == 0 for start in starts) and all(end >= WHOLE for end in ends)
    if not whole or not set(by_axis) <= {ROWS, COLUMNS} or min(steps, default=1) < 1:
        return None
    return [by_axis.get(ROWS, 1), by_axis.get(COLUMNS, 1)]
