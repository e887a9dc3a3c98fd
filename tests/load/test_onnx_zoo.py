"""The published checkpoints in the forms that tools give an ONNX file: each answers as it did."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper, version_converter
from onnx_graphs import TOLERANCE, by_runtime, imported
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from zoo import cifar10_test_images, needs_images, needs_zoo, zoo_network

from edgeclean.networks.pixels import normalize

NAMES = ("lenet-badnets-nobn", "resnet20-clean", "smallvgg-badnets")
pytestmark = [needs_zoo, needs_images]


@cache
def exported(name: str, opset: int = 13) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter is deprecated, and is what the files in the wild were made with.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            zoo_network(name).module,
            (torch.zeros(1, 3, 32, 32),),
            stream,
            dynamo=False,
            opset_version=opset,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
        )
    return stream.getvalue()


def pictures(name: str) -> torch.Tensor:
    pixels, _ = cifar10_test_images(4)
    return normalize(pixels, zoo_network(name).spec)


def assert_same(name: str, contents: bytes, tolerance: float = TOLERANCE) -> dict[str, float]:
    module, _, _, compared = imported(contents)
    pixels = pictures(name)
    with torch.no_grad():
        got = module(pixels)
    expected = by_runtime(exported(name), pixels)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    return compared


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22])
def test_every_opset(opset: int) -> None:
    """Those that the exporter writes no more are lifted from one that it does."""
    # ResNet-20's shortcuts take every second pixel, which slices have a word for from opset 10 on.
    name = NAMES[opset % 3] if opset > 9 else "smallvgg-badnets"
    contents = exported(name, min(opset, 20))
    if opset > 20:
        lifted = version_converter.convert_version(ModelProto.FromString(contents), opset)
        contents = lifted.SerializeToString()
    assert_same(name, contents)


@pytest.mark.parametrize("name", NAMES)
def test_images_with_channels_last(name: str) -> None:
    model = ModelProto.FromString(exported(name))
    value = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 32, 32, 3])
    model.graph.input[0].CopyFrom(value)
    for node in model.graph.node:
        for place, one in enumerate(node.input):
            if one == "images":
                node.input[place] = "turned"
    turn = helper.make_node("Transpose", ["images"], ["turned"], perm=[0, 3, 1, 2])
    model.graph.node.insert(0, turn)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    assert_same(name, model.SerializeToString())


@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name: str) -> None:
    """Each weight loses 2 ** -11 of itself, and so do the answers, some times over."""
    model = ModelProto.FromString(exported(name))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                half = numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(numpy_helper.from_array(half))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    compared = assert_same(name, model.SerializeToString(), tolerance=0.05)
    assert compared["compared"] < TOLERANCE
    assert compared["compared_as_rounded"] < 0.05


class Noise(CalibrationDataReader):
    """Four batches of images in the range of pixels."""

    def __init__(self) -> None:
        self._left = 4

    def get_next(self) -> dict[str, np.ndarray] | None:
        self._left -= 1
        if self._left < 0:
            return None
        generator = np.random.default_rng(self._left)
        noise = generator.uniform(-2, 2, (4, 3, 32, 32)).astype(np.float32)
        return {"images": noise}


@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=["int8", "uint8"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_quantise_and_dequantise(
    name: str, per_channel: bool, kind: QuantType, tmp_path: Path
) -> None:
    (tmp_path / "plain.onnx").write_bytes(exported(name))
    quantize_static(
        tmp_path / "plain.onnx",
        tmp_path / "net.onnx",
        Noise(),
        quant_format=QuantFormat.QDQ,
        activation_type=kind,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
    )
    contents = (tmp_path / "net.onnx").read_bytes()
    assert b"DequantizeLinear" in contents
    _, _, notes, compared = imported(contents)
    assert "are read as float" in notes[0]
    assert compared["compared"] < TOLERANCE
    assert compared["compared_as_rounded"] < 0.2
