"""FP16 and BF16 in the graph: half-precision weights and casts, float32 at the input and output.

TensorRT 11 has no precision flags any more: an engine computes in what the ONNX file says. FP16 is
written by ONNX Runtime's own converter. BF16 is the same graph with the other type; ONNX defines
convolutions and pooling in bfloat16 only from opset 22 on (onnx/docs/Changelog.md, Conv-22).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnxruntime.quantization.onnx_model import ONNXModel

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from exporters.onnx_check import drop_unread, open_onnx, opset_of
from exporters.precision.activations import all_activations

BF16_OPSET = 22
LARGEST_FP16 = 65504.0
HEADROOM = 4.0  # synthetic images do not reach every value that real ones do
# Shapes and indices stay what they are; resizing has float32 parameters by its definition.
BLOCKED_OPERATORS = ("Range", "CumSum", "Upsample", "NonMaxSuppression", "TopK", "RoiAlign")


def to_fp16(model: bytes, kept: frozenset[str] = frozenset()) -> bytes:
    """The network in FP16, but for the nodes named in ``kept``; its input and output stay float32.

    Raises:
        InputRejectedError: the converter cannot write it, or what it writes is not valid ONNX.
    """
    return _finished(_converted(open_onnx(model), kept), model)


def to_bf16(model: bytes, kept: frozenset[str] = frozenset()) -> bytes:
    """The network in BF16 at opset 22 or above; otherwise as `to_fp16`.

    Raises:
        InputRejectedError: the opset cannot be raised, or the result is not valid ONNX.
    """
    source = open_onnx(model)
    if opset_of(source) < BF16_OPSET:
        try:
            source = version_converter.convert_version(source, BF16_OPSET)
        except RuntimeError as error:
            raise InputRejectedError(
                f"the network cannot be raised to opset 22: {first_line(error)}"
            ) from error
    weights = {one.name: numpy_helper.to_array(one) for one in source.graph.initializer}
    proto = _converted(source, kept)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:  # from the float32 values: rounded once
            tensor.CopyFrom(_bfloat16_tensor(tensor.name, weights[tensor.name]))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = _brain(attribute.i)
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                values = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(_bfloat16_tensor(attribute.t.name, values))
    for info in proto.graph.value_info:
        kind = info.type.tensor_type
        kind.elem_type = _brain(kind.elem_type)
    return _finished(proto, model)


def layers_of(model: bytes) -> tuple[str, ...]:
    """The nodes that may stay in float32 on their own: those with weights."""
    kinds = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"}
    return tuple(node.name for node in open_onnx(model).graph.node if node.op_type in kinds)


def out_of_range(model: bytes, images: NDArray[np.float32]) -> tuple[str, ...]:
    """Nodes that read or write a value too near FP16's largest, on images [n, c, h, w]."""
    proto = open_onnx(model)
    limit = LARGEST_FP16 / HEADROOM
    large = {
        name
        for name, values in all_activations(model, images)
        if not float(np.abs(values).max()) <= limit
    }
    large |= {
        one.name
        for one in proto.graph.initializer
        if one.data_type == TensorProto.FLOAT
        and np.abs(numpy_helper.to_array(one)).max(initial=0.0) > limit
    }
    return tuple(node.name for node in proto.graph.node if large & {*node.input, *node.output})


def _converted(proto: onnx.ModelProto, kept: frozenset[str]) -> onnx.ModelProto:
    with warnings.catch_warnings():
        # It warns of every weight below 6e-8, which it writes as 6e-8: that is what FP16 has.
        warnings.simplefilter("ignore")
        converted = _converter()(
            proto,
            keep_io_types=True,
            op_block_list=list(BLOCKED_OPERATORS),
            node_block_list=sorted(kept),
        )
    _join_casts(converted)
    checked: onnx.ModelProto = converted
    return checked


def _join_casts(proto: onnx.ModelProto) -> None:
    """Undo that the converter goes through FP16 between two float32 nodes: large values end there.

    A cast up that reads a cast down becomes the float32 value itself, in place.
    """
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    outputs = {one.name for one in graph.output}
    instead = {}
    for node in graph.node:
        below = makers.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if below is None or not _casts_to(below, TensorProto.FLOAT16):
            continue
        if node.output[0] in outputs:
            node.op_type = "Identity"
            del node.attribute[:]
            node.input[0] = below.input[0]
        else:
            instead[node.output[0]] = below.input[0]
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
    drop_unread(proto)


def _casts_to(node: onnx.NodeProto, kind: int) -> bool:
    return bool(node.op_type == "Cast" and node.attribute[0].i == kind)


def _converter() -> Callable[..., onnx.ModelProto]:
    """ONNX Runtime's converter; that its package puts a folder on the import path is undone."""
    before = list(sys.path)
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    finally:
        sys.path[:] = before
    found: Callable[..., onnx.ModelProto] = convert_float_to_float16
    return found


def _finished(proto: onnx.ModelProto, source: bytes) -> bytes:
    """Order the nodes, drop what differs between runs and versions, and check the whole."""
    ONNXModel(proto).topological_sort()  # the converter appends its casts at the end
    del proto.graph.value_info[:]  # derived, and stale after conversion
    proto.producer_name = "edgeclean"
    contents: bytes = proto.SerializeToString(deterministic=True)
    was, now = open_onnx(source).graph, open_onnx(contents).graph
    for before, after in ((was.input, now.input), (was.output, now.output)):
        if [one.type.SerializeToString() for one in before] != [
            one.type.SerializeToString() for one in after
        ]:
            raise InputRejectedError("the conversion changed the type of the input or the output")
    return contents


def _bfloat16_tensor(name: str, values: NDArray[np.float32]) -> onnx.TensorProto:
    """Round to nearest even: the upper half of the float32 bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return helper.make_tensor(
        name, TensorProto.BFLOAT16, values.shape, rounded.astype("<u2").tobytes(), raw=True
    )


def _brain(kind: int) -> int:
    return int(TensorProto.BFLOAT16) if kind == TensorProto.FLOAT16 else kind
