"""Precision at its edges: what a target lacks, what cannot be lowered, one image, none to keep."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, version_converter
from test_precision import IMAGES, NETWORK
from tiny_networks import tiny_pixels

from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.errors import InputRejectedError, ParityError, UsageError
from exporters.onnx_check import open_onnx, opset_of
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.precision.half import layers_of, to_bf16, to_fp16
from exporters.precision.int8 import quantised_layers, to_int8, without
from exporters.precision.lower import PrecisionSettings, lower_precision
from exporters.precision.sensitivity import Judge, Threshold, choose_kept
from exporters.session import OnnxSession


@pytest.fixture(scope="module")
def model() -> bytes:
    return export_onnx(NETWORK)


@pytest.mark.parametrize(
    ("target", "jetpack", "entries", "said"),
    [
        ("jetson-nano", None, {"precision": {"format": "int8"}}, "does not compute in int8"),
        ("orin-nano", None, {"precision": {"format": "bf16"}}, "bf16 needs opset 22.*use fp16$"),
        ("thor", None, {"precision": {"format": "bf16"}}, "use fp16, or JetPack 7.2.2$"),
        ("cpu", None, {"precision": {"format": "fp16"}}, "does not compute in fp16"),
        # Some devices have these, and no file is written in them: no other target is advised.
        ("cpu", None, {"precision": {"format": "fp8"}}, "it must be one of fp32, fp16, bf16, int8"),
        ("thor", None, {"precision": {"format": "fp4"}}, "it must be one of fp32, fp16, bf16"),
        (
            "cpu",
            None,
            {"precision": {"format": "int8"}, "export": {"opset": 11}},
            "int8 needs opset 13",
        ),
    ],
)
def test_what_the_target_lacks_is_refused_before_any_work(
    target: str, jetpack: str | None, entries: dict[str, dict[str, object]], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        settings_for(load_target(target, jetpack=jetpack), entries)


def test_ranks_follow_the_precision() -> None:
    orin = load_target("orin-nano")
    assert settings_for(orin, {}).ranks.rank_multiple == 8
    asked = settings_for(orin, {"precision": {"format": "int8"}})
    assert asked.ranks.rank_multiple == 32
    settings_for(load_target("agx-orin", jetpack="7.2.2"), {"precision": {"format": "bf16"}})


def test_int8_needs_images_and_a_convolution(model: bytes) -> None:
    with pytest.raises(UsageError, match="no images were given to calibrate"):
        to_int8(model, IMAGES[:0])
    linear = open_onnx(model)
    graph = linear.graph
    flat = helper.make_node("Relu", [graph.input[0].name], [graph.output[0].name])
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.append(flat)
    graph.output[0].type.CopyFrom(graph.input[0].type)
    with pytest.raises(InputRejectedError, match="no convolution"):
        to_int8(linear.SerializeToString(), IMAGES)


def test_one_image_calibrates_and_judges(model: bytes) -> None:
    lowered = lower_precision(model, NETWORK.spec, tiny_pixels(1), PrecisionSettings(format="int8"))
    assert lowered.agreement.images == 1


@pytest.mark.parametrize("batch", [4, 16, 48])
def test_int8_of_files_with_more_images_a_run_than_there_are(batch: int, model: bytes) -> None:
    """Calibrated on the images that there are, as the same network of one image a run is."""
    export = ExportSettings(batch=batch)
    few = IMAGES[:4]
    made = to_int8(export_onnx(NETWORK, export), few, "minmax")
    alone = to_int8(model, few, "minmax")
    judged = OnnxSession(made).predict(IMAGES), OnnxSession(alone).predict(IMAGES)
    np.testing.assert_allclose(*judged, rtol=1e-4, atol=1e-4)
    asked = PrecisionSettings(format="int8", images=4)
    pixels = tiny_pixels(8)
    assert lower_precision(export_onnx(NETWORK, export), NETWORK.spec, pixels, asked).layers > 0


def test_a_file_that_never_comes_near_enough_is_refused(model: bytes) -> None:
    """Keeping every layer is no promise: what stands between the layers is lowered as well."""
    layers, pixels = layers_of(model), tiny_pixels(16)
    nearest = Judge(model, IMAGES)(to_fp16(model, frozenset(layers))).signal_to_noise_db
    assert nearest < 140
    asked = PrecisionSettings(format="fp16", fp16_signal_db=150.0)
    with pytest.raises(ParityError, match=r"at \d+ dB, and 98.0% at 150 dB were asked"):
        lower_precision(model, NETWORK.spec, pixels, asked)


def test_bf16_of_a_network_at_opset_22_keeps_its_opset(model: bytes) -> None:
    raised = version_converter.convert_version(open_onnx(model), 22).SerializeToString()
    assert opset_of(open_onnx(to_bf16(raised))) == 22
    assert to_bf16(raised) == to_bf16(model)


def test_nothing_is_left_to_keep_where_every_layer_is_kept_from_the_start(model: bytes) -> None:
    int8 = to_int8(model, IMAGES)
    layers = quantised_layers(int8)
    choice = choose_kept(
        lambda kept: without(int8, kept),
        layers,
        Judge(model, IMAGES),
        Threshold(agreement=1.0, signal_to_noise_db=199.0),
        always_kept=layers,
    )
    assert set(choice.kept) == set(layers)
    assert choice.sensitivity_db == {}
