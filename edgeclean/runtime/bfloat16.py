"""A stand-in for BF16 files where nothing computes in bfloat16: its weights, in float32 arithmetic.

ONNX Runtime's CPU provider has no bfloat16 convolutions. What is run in their place has the same
rounded weights, so it shows what the rounding of weights does, and not the rest.
"""

from __future__ import annotations

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper


def runnable(model: bytes) -> bytes:
    """The same bytes, or for a file with bfloat16 weights the stand-in."""
    try:
        proto = onnx.load_model_from_string(model)
    except DecodeError:
        return model  # the runtime says what is wrong with it
    tensors = [*proto.graph.initializer]
    tensors += [a.t for node in proto.graph.node for a in node.attribute if a.HasField("t")]
    brain = [tensor for tensor in tensors if tensor.data_type == TensorProto.BFLOAT16]
    if not brain:
        return model
    for tensor in brain:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = (
                    TensorProto.FLOAT if attribute.i == TensorProto.BFLOAT16 else attribute.i
                )
    del proto.graph.value_info[:]
    contents: bytes = proto.SerializeToString(deterministic=True)
    return contents
