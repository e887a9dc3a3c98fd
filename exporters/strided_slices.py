"""Every second row and column, or token of a line, as a pooling window of one: the same numbers.

ResNets of CIFAR take them in their shortcuts (option A of He et al., 2016, equation 1) by a Slice
with steps, which ncnn lacks. A window of one place with a stride has one number in it, which is the
largest.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporters.onnx_check import drop_unread, open_onnx

FIRST = 2  # of the axes that are pooled, in a line [n, c, l] and an image [n, c, h, w]
POOLED = (3, 4)  # how many axes those have
WHOLE = 2**31 - 1  # what exporters write for "to the end"; 2**63 - 1 too


def pooled_slices(model: bytes) -> bytes:
    """The file with each Slice of whole lines or rows and columns with steps as a MaxPool of one.

    A Slice that begins or ends within them stays as it is.

    Args:
        model: an ONNX file at opset 11 or above.

    Returns:
        The file; the same bytes where there is no such Slice.

    Raises:
        InputRejectedError: it is not plain, valid ONNX.
    """
    proto = open_onnx(model)
    constants = {one.name: one for one in proto.graph.initializer}
    ranks = _ranks(proto)
    changed = False
    for node in proto.graph.node:
        strides = _strides(node, constants, ranks)
        if strides is not None:
            pool = helper.make_node(
                "MaxPool",
                [node.input[0]],
                [node.output[0]],
                name=node.name,
                kernel_shape=[1] * len(strides),
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


def _ranks(proto: onnx.ModelProto) -> dict[str, int]:
    """The number of axes of each value, where it is known."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    known = (*graph.input, *graph.value_info)
    return {one.name: len(one.type.tensor_type.shape.dim) for one in known}


def _strides(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], ranks: dict[str, int]
) -> list[int] | None:
    """The steps over the pooled axes of such a Slice; None for any other node."""
    if node.op_type != "Slice" or len(node.input) != 5:
        return None
    if not all(name in constants for name in node.input[1:]):
        return None
    rank = ranks.get(node.input[0], 0)
    given = (numpy_helper.to_array(constants[name]).reshape(-1) for name in node.input[1:])
    starts, ends, axes, steps = (np.asarray(one, np.int64).tolist() for one in given)
    if rank not in POOLED:
        return None
    by_axis = {axis % rank: step for axis, step in zip(axes, steps, strict=True)}
    whole = all(start == 0 for start in starts) and all(end >= WHOLE for end in ends)
    pooled = range(FIRST, rank)
    if not whole or not set(by_axis) <= set(pooled) or min(steps, default=1) < 1:
        return None
    return [by_axis.get(axis, 1) for axis in pooled]
