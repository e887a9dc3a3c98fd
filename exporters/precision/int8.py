"""INT8 in the graph: quantise-dequantise pairs at the convolutions, calibrated on given images.

Written so that TensorRT 8, 10 and 11 all build the same network from the file: symmetric, zero
points 0, int8 on both sides, weights per output channel, a pair of its own for every reader,
float32 weights before their pair, and nothing on biases (NVIDIA's guide to explicit quantisation;
the options are those of ONNX Runtime's TensorRT examples). What is not a convolution computes in
float32. Per-channel pairs exist in ONNX from opset 13 on.

Or, for converters that want it so, with one scale for each tensor: weights stored as int8, biases
as int32, and pairs at every operator that has them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.temporary import temporary_folder
from exporters.onnx_check import drop_unread, open_onnx, opset_of

INT8_OPSET = 13
Calibration = Literal["minmax", "percentile", "entropy"]
PAIRS = frozenset({"QuantizeLinear", "DequantizeLinear"})
Scales = Literal["channel", "tensor"]
# What integer kernels exist for. Not norms: their factors would be stored as int8 for good.
WITH_INTEGERS = (
    *("Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gemm"),
    *("GlobalAveragePool", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape"),
    *("Resize", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)
CHUNK = 16  # runs whose activations a histogram holds at once
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_AT_CONVOLUTIONS = {
    "QuantizeBias": False,
    "DedicatedQDQPair": True,
    "OpTypesToExcludeOutputQuantization": ["Conv"],
}
_AT_EVERYTHING = {"QuantizeBias": True, "DedicatedQDQPair": False}


def to_int8(
    model: bytes,
    images: NDArray[np.float32],
    calibration: Calibration = "percentile",
    scales: Scales = "channel",
) -> bytes:
    """The network with every convolution between quantise-dequantise pairs.

    Args:
        model: a float32 ONNX file at opset 13 or above, of any batch.
        images: [n, c, h, w] normalised, from which the ranges of the activations are taken.
        calibration: how: the extremes, their 99.99th percentile, or the least divergence.
        scales: of weights: one for each output channel; or one for each tensor, with pairs at
            every operator that has integer kernels and not at convolutions alone.

    Raises:
        UsageError: the opset is below 13, or there are no images.
        InputRejectedError: the network has no convolution, or what comes out is not valid ONNX.
    """
    proto = _prepared(model)
    if len(images) == 0:
        raise UsageError("no images were given to calibrate INT8 on; at least one is needed")
    reader = _Reader(proto.graph.input[0], images)
    with temporary_folder("edgeclean-") as folder, redirect_stdout(io.StringIO()):
        path = folder / "int8.onnx"
        quantize_static(
            proto,
            path,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"] if scales == "channel" else list(WITH_INTEGERS),
            per_channel=scales == "channel",
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[calibration],
            extra_options={
                **(_AT_CONVOLUTIONS if scales == "channel" else _AT_EVERYTHING),
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "AddQDQPairToWeight": True,
                "CalibStridedMinMax": CHUNK if len(reader) % CHUNK == 0 else 1,
                "CalibPercentile": 99.99,
            },
        )
        quantised = onnx.load_model_from_string(path.read_bytes())
    if scales == "channel":
        _take_out(quantised, lambda node: node.op_type != "Conv")  # shortcuts stay in float32
    return _finished(quantised, model)


def quantised_layers(model: bytes) -> tuple[str, ...]:
    """What stands between pairs: the convolutions, or every operator where scales are tensors'."""
    proto = onnx.load_model_from_string(model)
    made = {name for node in proto.graph.node for name in node.output}
    pairs = {  # and not what stores a constant, such as the bias of a layer that was kept
        name
        for node in proto.graph.node
        if _is_dequantise(node) and node.input[0] in made
        for name in node.output
    }
    return tuple(
        node.name
        for node in proto.graph.node
        if node.op_type not in PAIRS and pairs & set(node.input)
    )


def without(model: bytes, kept: frozenset[str]) -> bytes:
    """The same file with the named layers back in float32: their pairs are taken out."""
    if not kept:
        return model
    proto = onnx.load_model_from_string(model)
    _free_outputs(proto, kept)
    _take_out(proto, lambda node: node.name in kept)
    return _finished(proto, model)


def stored_in_int8(model: bytes) -> bytes:
    """The same network with its quantised weights as int8, a quarter of the bytes.

    A runtime that is given QuantizeLinear of a constant would store that in float32. TensorRT wants
    it so, and `to_int8` writes it so.

    Raises:
        InputRejectedError: it is not plain, valid ONNX.
    """
    proto = open_onnx(model)
    constants = {one.name: one for one in proto.graph.initializer}
    for node in list(proto.graph.node):
        if node.op_type == "QuantizeLinear" and all(name in constants for name in node.input):
            weights, scale, zero = (numpy_helper.to_array(constants[n]) for n in node.input)
            axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
            sides = [-1 if side == axis else 1 for side in range(weights.ndim)]
            if scale.ndim:
                scale, zero = scale.reshape(sides), zero.reshape(sides)
            limits = np.iinfo(zero.dtype)
            whole = np.rint(weights / scale) + zero
            stored = np.clip(whole, limits.min, limits.max).astype(zero.dtype)
            proto.graph.initializer.append(numpy_helper.from_array(stored, node.output[0]))
            proto.graph.node.remove(node)
    drop_unread(proto)
    contents: bytes = proto.SerializeToString(deterministic=True)
    open_onnx(contents)
    return contents


def _prepared(model: bytes) -> onnx.ModelProto:
    proto = open_onnx(model)
    if opset_of(proto) < INT8_OPSET:
        raise UsageError(
            f"INT8 with a scale for each channel needs opset {INT8_OPSET}, and the network is at "
            f"{opset_of(proto)}; export it at {INT8_OPSET} or above, or use fp16"
        )
    if not any(node.op_type == "Conv" for node in proto.graph.node):
        raise InputRejectedError("the network has no convolution; there is nothing for INT8 to do")
    # Its mark of a model that is ready, without which it logs an advice that does not apply here.
    proto.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    return proto


class _Reader(CalibrationDataReader):  # type: ignore[misc] # the library is not annotated
    """Feeds the images one file-sized batch at a time."""

    def __init__(self, entry: onnx.ValueInfoProto, images: NDArray[np.float32]) -> None:
        self._name = entry.name
        batch = entry.type.tensor_type.shape.dim[0]
        if batch.HasField("dim_value") and batch.dim_value != 1:
            runs = max(1, len(images) // batch.dim_value)
            # Too few for one run are given again until it is full: ranges stay what they were.
            images = np.resize(images, (runs * batch.dim_value, *images.shape[1:]))
            self._batches = images.reshape(-1, batch.dim_value, *images.shape[1:])
        else:
            self._batches = images[:, None]
        self._next, self._end = 0, len(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Set which batches are read next."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """One batch, or None at the end."""
        if self._next >= self._end:
            return None
        self._next += 1
        return {self._name: self._batches[self._next - 1]}


def _finished(proto: onnx.ModelProto, source: bytes) -> bytes:
    """Put our own description back, drop domains that are not used, and check the whole."""
    was = onnx.load_model_from_string(source)
    for field in ("metadata_props", "opset_import"):
        del getattr(proto, field)[:]
    proto.metadata_props.extend(was.metadata_props)
    proto.opset_import.extend(was.opset_import)
    proto.producer_name, proto.producer_version = was.producer_name, was.producer_version
    proto.ir_version = was.ir_version
    proto.graph.name = was.graph.name
    del proto.graph.value_info[:]
    contents: bytes = proto.SerializeToString(deterministic=True)
    open_onnx(contents)
    return contents


def _free_outputs(proto: onnx.ModelProto, kept: frozenset[str]) -> None:
    """Let a kept layer that makes the network's output give it as it is, in place."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    for output in proto.graph.output:
        pair = makers.get(output.name)
        if pair is None or not _is_dequantise(pair):
            continue
        own = makers[pair.input[0]].input[0]
        if makers[own].name not in kept:
            continue
        proto.graph.node.remove(pair)
        for node in proto.graph.node:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    if name == own:
                        names[place] = output.name


def _take_out(proto: onnx.ModelProto, freed: Callable[[onnx.NodeProto], bool]) -> None:
    """Let some nodes read what stands before the pairs, in place; drop pairs without readers."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        if node.op_type in PAIRS or not freed(node):
            continue
        for place, name in enumerate(node.input):
            pair = makers.get(name)
            # A bias in int32 has no float32 to go back to; what it stands for is as close.
            if pair is not None and _is_dequantise(pair) and pair.input[0] in makers:
                node.input[place] = makers[pair.input[0]].input[0]
    drop_unread(proto)


def _is_dequantise(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "DequantizeLinear")
