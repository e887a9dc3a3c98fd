"""Quantise-dequantise graphs read as float: weights dequantised, activations kept in their range.

A pair of QuantizeLinear and DequantizeLinear rounds to steps of its scale and clips to its range.
The rounding is noise, which a network of float weights has not; the clip is part of what the
network computes, for quantisers leave a ReLU to it. So the pair becomes a Clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from edgeclean.errors import InputRejectedError
from edgeclean.load.onnx.graph import node_label, replace_nodes_
from edgeclean.load.onnx.writer import GraphWriter

QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
}
MOST_SCALES = 2**16  # numbers of a scale or zero point that is cast
Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class _Scale:
    """The scale and zero point of one quantiser."""

    step: Numbers
    zero: Numbers
    kind: int

    def ends(self) -> tuple[float, float]:
        """Return what the ends of the range stand for, where there is one step."""
        step, zero = float(self.step.flat[0]), float(self.zero.flat[0])
        low, high = RANGES[self.kind]
        return (low - zero) * step, (high - zero) * step


def without_quantisers_(graph: GraphProto, opset: int) -> str:
    """Replace all pairs of quantisers, in place.

    Returns:
        What was done, in a few words; "" where there are none.

    Raises:
        InputRejectedError: whole numbers go elsewhere than into a DequantizeLinear, or a scale is
            computed, or one of a channel of an activation.
    """
    if not any(node.op_type in QUANTISERS for node in graph.node):
        return ""
    reader = _Reader(graph, opset)
    for node in graph.node:
        reader.take(node)
    replace_nodes_(graph, reader.nodes)
    graph.initializer.extend(reader.weights)
    return (
        f"{len(reader.weights)} quantised tensors are read as float, {reader.pairs} activations "
        "keep their range and are rounded no more"
    )


class _Reader(GraphWriter):
    """One pass over the nodes in their order; knows the numbers of quantised constants as well."""

    def __init__(self, graph: GraphProto, opset: int) -> None:
        super().__init__(graph, opset)
        self.quantised: dict[str, tuple[str, _Scale]] = {}
        self.weights: list[TensorProto] = []
        self.pairs = 0

    def take(self, node: NodeProto) -> None:
        """Write what stands for a node."""
        if node.op_type == "QuantizeLinear":
            self._quantize(node)
            return
        if node.op_type == "DequantizeLinear":
            self._dequantize(node)
            return
        if node.op_type in ("Identity", "Cast") and node.input[0] in self.constants:
            self._pass_on(node)
        whole = [name for name in node.input if name in self.quantised]
        if whole:
            raise InputRejectedError(
                f"{node_label(node)}: it computes with whole numbers; quantise with "
                "QuantizeLinear and DequantizeLinear in pairs (QDQ), or export the float network"
            )
        self.nodes.append(node)

    def _pass_on(self, node: NodeProto) -> None:
        """Know a constant by its other name or in its other type, as exporters write scales."""
        tensor = self.constants[node.input[0]]
        if node.op_type == "Cast":
            if math.prod(tensor.dims) > MOST_SCALES:
                return
            kind = next((one.i for one in node.attribute if one.name == "to"), 0)
            numbers = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor = numpy_helper.from_array(numbers, node.output[0])
        self.constants[node.output[0]] = tensor

    def _quantize(self, node: NodeProto) -> None:
        scale = self._scale(node)
        source = node.input[0]
        if source in self.constants:
            numbers = numpy_helper.to_array(self.constants[source]).astype(np.float32)
            step, zero = _along(node, numbers, scale)
            low, high = RANGES[scale.kind]
            whole = np.clip(np.rint(numbers / step) + zero, low, high)
            kind = helper.tensor_dtype_to_np_dtype(scale.kind)
            self.constants[node.output[0]] = numpy_helper.from_array(
                whole.astype(kind), node.output[0]
            )
        else:
            self.quantised[node.output[0]] = source, scale

    def _dequantize(self, node: NodeProto) -> None:
        scale, source = self._scale(node), node.input[0]
        if source in self.constants:
            whole = numpy_helper.to_array(self.constants[source]).astype(np.float32)
            step, zero = _along(node, whole, scale)
            numbers = ((whole - zero) * step).astype(np.float32)
            self.weights.append(numpy_helper.from_array(numbers, node.output[0]))
            return
        if source not in self.quantised:
            raise InputRejectedError(
                f"{node_label(node)}: its whole numbers come from no QuantizeLinear; quantise "
                "in pairs (QDQ), or export the float network"
            )
        value, before = self.quantised[source]
        same = np.array_equal(before.step, scale.step) and np.array_equal(before.zero, scale.zero)
        if not same or before.kind != scale.kind or before.step.size != 1:
            raise InputRejectedError(
                f"{node_label(node)}: another scale than its QuantizeLinear has, or one for "
                "each channel of an activation; export the float network"
            )
        self.pairs += 1
        self.clip(value, *before.ends(), node.output[0], node.name)

    def _scale(self, node: NodeProto) -> _Scale:
        given = [name for name in node.input[1:] if name]
        known = [self.constants[name] for name in given if name in self.constants]
        block = any(one.name == "block_size" and one.i for one in node.attribute)
        if not given or len(known) < len(given) or block:
            raise InputRejectedError(
                f"{node_label(node)}: its scale is computed, or one for each block; export the "
                "float network"
            )
        step = numpy_helper.to_array(known[0]).astype(np.float32)
        source = self.constants.get(node.input[0])
        if len(known) > 1:
            kind = known[1].data_type
            zero = numpy_helper.to_array(known[1]).astype(np.float32)
        else:
            kind = next((one.i for one in node.attribute if one.name == "output_dtype"), 0)
            kind = kind or TensorProto.UINT8
            if node.op_type == "DequantizeLinear":  # whose output_dtype is that of the numbers
                kind = source.data_type if source is not None else self._kind_of(node)
            zero = np.zeros_like(step)
        weights = node.op_type == "DequantizeLinear" and source is not None
        if kind not in RANGES and not (weights and kind == TensorProto.INT32):
            raise InputRejectedError(
                f"{node_label(node)}: element type {kind} of its zero point; 8 and 16 bits are read"
            )
        return _Scale(step, zero, kind)

    def _kind_of(self, node: NodeProto) -> int:
        pair = self.quantised.get(node.input[0])
        return TensorProto.UINT8 if pair is None else pair[1].kind


def _along(node: NodeProto, numbers: Numbers, scale: _Scale) -> tuple[Numbers, Numbers]:
    """Return scale and zero point in a shape that multiplies along their axis."""
    if scale.step.size == 1:
        return scale.step.reshape(()), scale.zero.reshape(-1)[:1].reshape(())
    axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
    if not -numbers.ndim <= axis < numbers.ndim or numbers.shape[axis] != scale.step.size:
        raise InputRejectedError(
            f"{node_label(node)}: {scale.step.size} scales for a tensor of {numbers.shape}"
        )
    shape = [1] * numbers.ndim
    shape[axis] = -1
    return scale.step.reshape(shape), np.broadcast_to(
        scale.zero.reshape(-1), scale.step.size
    ).reshape(shape)
