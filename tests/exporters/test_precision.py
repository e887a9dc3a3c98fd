from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from tiny_networks import Block, PreActivation, tiny_network, tiny_pixels

from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.errors import ParityError, UsageError
from edgeclean.networks.pixels import normalize
from exporters.onnx_check import open_onnx, opset_of
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.precision.activations import all_activations
from exporters.precision.half import layers_of, out_of_range, to_bf16, to_fp16
from exporters.precision.int8 import PAIRS, quantised_layers, to_int8, without
from exporters.precision.lower import (
    Precision,
    PrecisionSettings,
    check_precision,
    lower_precision,
)
from exporters.precision.sensitivity import Judge, Threshold, choose_kept, compare_logits
from exporters.session import OnnxSession, runnable

NETWORK = tiny_network(Block(8), PreActivation(8))
IMAGES = np.ascontiguousarray(normalize(tiny_pixels(48), NETWORK.spec).numpy())


@pytest.fixture(scope="module")
def model() -> bytes:
    return export_onnx(NETWORK)


@pytest.fixture(scope="module")
def int8(model: bytes) -> bytes:
    return to_int8(model, IMAGES)


def kinds(model: bytes) -> set[int]:
    return {one.data_type for one in open_onnx(model).graph.initializer}


@pytest.mark.parametrize("form", ["fp16", "bf16", "int8"])
def test_every_precision_keeps_the_networks_answers_and_its_float_ends(
    model: bytes, form: Precision
) -> None:
    lowered = lower_precision(model, NETWORK.spec, tiny_pixels(48), PrecisionSettings(format=form))
    assert lowered.model != model
    assert lowered.agreement.top1_agreement >= 0.98
    least = {"fp16": 35, "bf16": 25, "int8": 20}[form]
    assert 200 > lowered.agreement.signal_to_noise_db >= least
    graph = open_onnx(lowered.model).graph
    for end in (*graph.input, *graph.output):
        assert end.type.tensor_type.elem_type == TensorProto.FLOAT
    facts = {fact.key for fact in open_onnx(lowered.model).metadata_props}
    assert facts == {fact.key for fact in open_onnx(model).metadata_props}


@pytest.mark.parametrize("form", ["fp16", "bf16", "int8"])
def test_the_same_network_gives_the_same_bytes(model: bytes, form: Precision) -> None:
    settings = PrecisionSettings(format=form)
    once, again = (
        lower_precision(model, NETWORK.spec, tiny_pixels(48), settings) for _ in range(2)
    )
    assert once == again


def test_fp32_is_the_file_itself(model: bytes) -> None:
    lowered = lower_precision(model, NETWORK.spec, tiny_pixels(4))
    assert lowered.model == model
    assert lowered.agreement.signal_to_noise_db == 200
    assert lowered.kept == ()


def test_fp16_weights_are_half_as_large(model: bytes) -> None:
    half = to_fp16(model)
    assert TensorProto.FLOAT16 in kinds(half)
    assert TensorProto.FLOAT not in kinds(half)
    assert opset_of(open_onnx(half)) == 17


def test_a_kept_layer_stays_in_float32(model: bytes) -> None:
    (first, *_) = layers_of(model)
    proto = open_onnx(to_fp16(model, frozenset({first})))
    weights = {one.name: one for one in proto.graph.initializer}
    kinds_of = {
        node.name: weights[node.input[1]].data_type
        for node in proto.graph.node
        if node.op_type == "Conv"
    }
    kept = [name for name, kind in kinds_of.items() if kind == TensorProto.FLOAT]
    assert kept == [first]
    assert len(kinds_of) > 1


def test_a_layer_out_of_fp16s_range_is_found_and_kept() -> None:
    network = tiny_network()
    with torch.no_grad():
        network.module[0].weight.mul_(1e5)  # some values are above 65504 on the way
    model = export_onnx(network)
    found = out_of_range(model, IMAGES)
    largest = {name: 0.0 for name, _ in all_activations(model, IMAGES)}
    for name, values in all_activations(model, IMAGES):
        largest[name] = max(largest[name], float(np.abs(values).max()))
    nodes = open_onnx(model).graph.node
    assert max(largest.values()) > 65504 / 4
    assert {node.name for node in nodes if largest[node.output[0]] > 65504 / 4} <= set(found)
    lowered = lower_precision(
        model, network.spec, tiny_pixels(48), PrecisionSettings(format="fp16")
    )
    assert set(found) <= set(lowered.kept)
    assert np.isfinite(OnnxSession(lowered.model).predict(IMAGES)).all()


def test_bf16_is_rounded_once_to_nearest_even(model: bytes) -> None:
    proto = open_onnx(to_bf16(model))
    assert opset_of(proto) >= 22
    before = {one.name: numpy_helper.to_array(one) for one in open_onnx(model).graph.initializer}
    for one in proto.graph.initializer:
        assert one.data_type == TensorProto.BFLOAT16
        expected = torch.from_numpy(before[one.name].copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal(numpy_helper.to_array(one).astype(np.float32), expected)


def test_bf16_is_run_with_its_own_weights_in_float32(model: bytes) -> None:
    brain = to_bf16(model)
    assert runnable(model) == model
    assert TensorProto.BFLOAT16 not in kinds(runnable(brain))
    found = compare_logits(OnnxSession(model).predict(IMAGES), OnnxSession(brain).predict(IMAGES))
    assert 60 > found.signal_to_noise_db > 20


def test_int8_is_written_as_every_tensorrt_takes_it(int8: bytes) -> None:
    """Symmetric, zero points 0, int8 on both sides, per-channel weights, nothing on biases."""
    graph = open_onnx(int8).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    pairs = [node for node in graph.node if node.op_type.endswith("quantizeLinear")]
    pairs += [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert pairs
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert constants[node.input[1]].dtype == np.float32
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    for node in convolutions:
        image, weight = (makers[name] for name in node.input[:2])
        assert image.op_type == weight.op_type == "DequantizeLinear"
        channels = constants[makers[weight.input[0]].input[0]].shape[0]
        assert constants[weight.input[1]].shape == (channels,)
        assert constants[image.input[1]].shape == ()
        assert all(name in constants for name in node.input[2:])  # the bias, as it was
    for node in graph.node:  # a pair is for convolutions alone: shortcuts stay in float32
        if node.op_type not in {"Conv", "QuantizeLinear", "DequantizeLinear"}:
            assert not any(
                name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input
            )
    assert {one.domain for one in open_onnx(int8).opset_import} <= {"", "ai.onnx"}


def test_int8_weights_are_within_half_a_step(int8: bytes, model: bytes) -> None:
    """What is read back from the file's own scales, not what the quantiser says of itself."""
    graph = open_onnx(int8).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    quantised = [
        node.input
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in constants
    ]
    assert quantised
    for name, scale, *_ in quantised:
        weight = constants[name]
        steps = weight / constants[scale].reshape(-1, *[1] * (weight.ndim - 1))
        assert np.abs(steps).max() <= 127.5


def test_taking_every_pair_out_gives_the_float_network_back(int8: bytes, model: bytes) -> None:
    layers = quantised_layers(int8)
    assert len(layers) == 6
    back = without(int8, frozenset(layers))
    assert quantised_layers(back) == ()
    np.testing.assert_array_equal(
        OnnxSession(back).predict(IMAGES), OnnxSession(model).predict(IMAGES)
    )
    assert quantised_layers(without(int8, frozenset(layers[:2]))) == layers[2:]


def test_the_library_prints_nothing(model: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    to_int8(model, IMAGES)
    to_fp16(model)
    assert capfd.readouterr() == ("", "")


def test_the_most_damaging_layers_are_kept_and_no_more(model: bytes, int8: bytes) -> None:
    layers = quantised_layers(int8)
    judge = Judge(model, IMAGES)
    whole = judge(int8).signal_to_noise_db
    asked = Threshold(agreement=0.0, signal_to_noise_db=whole + 1)
    choice = choose_kept(lambda kept: without(int8, kept), layers, judge, asked)
    assert 0 < len(choice.kept) < len(layers)
    assert choice.agreement.signal_to_noise_db >= whole + 1
    assert set(choice.sensitivity_db) == set(layers)
    order = sorted(layers, key=lambda name: (choice.sensitivity_db[name], name))
    assert list(choice.kept) == order[: len(choice.kept)]
    fewer = without(int8, frozenset(choice.kept[:-1]))
    assert judge(fewer).signal_to_noise_db < whole + 1
    everything = Threshold(agreement=1.0, signal_to_noise_db=199.0)
    all_kept = choose_kept(lambda kept: without(int8, kept), layers, judge, everything)
    assert set(all_kept.kept) == set(layers)


def test_sensitivity_is_measured_only_where_it_is_needed(model: bytes, int8: bytes) -> None:
    choice = choose_kept(
        lambda kept: without(int8, kept),
        quantised_layers(int8),
        Judge(model, IMAGES),
        Threshold(agreement=0.5, signal_to_noise_db=5.0),
    )
    assert (choice.kept, choice.sensitivity_db) == ((), {})


def test_agreement_counts_what_it_says() -> None:
    expected = np.array([[3.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    got = np.array([[3.0, 0.0], [4.0, 2.0]], dtype=np.float32)
    found = compare_logits(expected, got)
    assert found.top1_agreement == 0.5
    assert found.max_abs_difference == 4.0
    assert found.max_relative_difference == 2.0
    centred = expected - expected.mean(axis=0)
    assert found.signal_to_noise_db == pytest.approx(10 * np.log10(np.square(centred).sum() / 16))
    assert compare_logits(expected, expected * np.nan).signal_to_noise_db == -200


def test_a_precision_that_destroys_the_network_is_an_error(
    model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = open_onnx(model)
    for one in broken.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(-9 * numpy_helper.to_array(one), one.name))
    monkeypatch.setattr(
        "exporters.precision.lower.to_fp16", lambda *_: broken.SerializeToString(deterministic=True)
    )
    with pytest.raises(ParityError, match="fp16 does not compute what it does in fp32"):
        lower_precision(model, NETWORK.spec, tiny_pixels(8), PrecisionSettings(format="fp16"))


def test_an_open_batch_and_a_batch_of_many_are_quantised() -> None:
    for batch in (None, 4):
        model = export_onnx(NETWORK, ExportSettings(batch=batch))
        lowered = lower_precision(
            model, NETWORK.spec, tiny_pixels(20), PrecisionSettings(format="int8")
        )
        assert lowered.agreement.signal_to_noise_db >= 20


def test_impossible_settings_are_refused(model: bytes) -> None:
    for wrong in ({"images": 0}, {"agreement": 1.5}, {"int8_signal_db": -1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            PrecisionSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no images"):
        lower_precision(model, NETWORK.spec, tiny_pixels(0))
    with pytest.raises(UsageError, match="needs opset 13"):
        to_int8(export_onnx(NETWORK, ExportSettings(opset=11)), IMAGES)


def test_with_a_scale_for_each_tensor_everything_is_int8_and_any_layer_can_be_kept(
    model: bytes,
) -> None:
    whole = to_int8(model, IMAGES, scales="tensor")
    graph = open_onnx(whole).graph
    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in PAIRS]
    assert all(constants[node.input[1]].size == 1 for node in pairs)
    assert not any(constants[node.input[2]].any() for node in pairs)
    layers = quantised_layers(whole)
    assert set(layers) > set(quantised_layers(to_int8(model, IMAGES)))
    judge = Judge(model, IMAGES)
    assert judge(without(whole, frozenset(layers))).signal_to_noise_db > 60  # biases, in int32
    some = without(whole, frozenset(layers[::2]))
    assert set(quantised_layers(some)) == set(layers[1::2])
    assert judge(some).signal_to_noise_db > judge(whole).signal_to_noise_db
    stored = lower_precision(
        model, NETWORK.spec, tiny_pixels(48), PrecisionSettings(format="int8", scales="tensor")
    )
    assert TensorProto.INT8 in kinds(stored.model)
    assert len(stored.model) < len(whole)


def test_a_target_that_takes_a_scale_for_each_tensor_is_given_no_other() -> None:
    settings, target = PrecisionSettings(format="int8"), load_target("stm32")
    with pytest.raises(UsageError, match="stm32 takes INT8 with one scale for each tensor"):
        check_precision(settings, ExportSettings(), target)
    check_precision(replace(settings, scales="tensor"), ExportSettings(), target)
    made = settings_for(target, {})
    assert (made.precision.format, made.precision.scales) == ("int8", "tensor")
    assert settings_for(target, {"precision": {"format": "fp32"}}).precision.format == "fp32"
    other = settings_for(load_target("cpu"), {"precision": {"format": "int8"}})
    assert other.precision.scales == "channel"
    assert settings_for(load_target("esp32-p4"), {}).precision.format == "fp32"
    with pytest.raises(UsageError, match="kit for rk3588 takes a network in fp32, and int8 was"):
        settings_for(load_target("rk3588"), {"precision": {"format": "int8"}})
