from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from tiny_networks import tiny_network, tiny_pixels
from torch import nn

from edgeclean.errors import InputRejectedError, ParityError, UsageError
from edgeclean.networks.pixels import normalize
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.parity import ParitySettings, check_parity
from exporters.session import OnnxSession


@pytest.mark.parametrize("batch", [1, 4, None])
def test_a_faithful_export_agrees_and_the_record_is_what_it_says(batch: int | None) -> None:
    network, pixels = tiny_network(), tiny_pixels(6)
    model = export_onnx(network, ExportSettings(batch=batch))
    record = check_parity(network, model, pixels)
    images = normalize(pixels, network.spec)
    with torch.no_grad():
        expected = network.module(images).numpy()
    difference = np.abs(OnnxSession(model).predict(images.numpy()).astype(float) - expected)
    assert record.images == 6
    assert record.top1_agreement == 1
    assert record.max_abs_difference == pytest.approx(difference.max(), abs=1e-6)
    assert record.max_abs_logit == pytest.approx(np.abs(expected).max(), rel=1e-6)
    assert record.max_relative_difference <= record.max_abs_difference <= 1e-5
    json.dumps(asdict(record))


def test_one_wrong_weight_is_found() -> None:
    network, pixels = tiny_network(), tiny_pixels()
    model = _with_bias_moved(export_onnx(network), 0.01)
    with pytest.raises(ParityError, match=r"differs from PyTorch by 0\.0\d+ of max\(1, largest"):
        check_parity(network, model, pixels)


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_the_difference_is_relative_to_the_largest_logit_but_never_below_one(scale: float) -> None:
    """The last bias moved by d moves every logit by d: relative d / max(1, largest logit)."""
    network, pixels = tiny_network(), tiny_pixels()
    with torch.no_grad():
        network.module[-1].weight.mul_(scale)
        network.module[-1].bias.mul_(scale)
        logits = network.module(normalize(pixels, network.spec))
    moved = 0.01 * max(1.0, scale)
    model = _with_bias_moved(export_onnx(network), moved)
    record = check_parity(network, model, pixels, ParitySettings(tolerance=0.9))
    # The image with the smallest largest logit has the largest relative difference.
    smallest = float(logits.abs().amax(dim=1).min())
    assert record.max_relative_difference == pytest.approx(moved / max(1.0, smallest), rel=1e-3)
    assert record.max_abs_difference == pytest.approx(moved, rel=1e-3)


def test_answers_that_are_all_small_are_compared_by_their_own_size() -> None:
    """As probabilities of many classes: a difference of all they are is small beside one."""
    network, pixels = tiny_network(), tiny_pixels()
    with torch.no_grad():
        network.module[-1].weight.mul_(1e-3)
        network.module[-1].bias.mul_(1e-3)
        largest = float(network.module(normalize(pixels, network.spec)).abs().max())
    assert largest < 0.01
    model = export_onnx(network)
    assert check_parity(network, model, pixels)
    settings = ParitySettings(tolerance=0.1)
    assert check_parity(network, _with_bias_moved(model, 0.09 * largest), pixels, settings)
    with pytest.raises(ParityError, match=r"and the largest logit of \d+ images is 0\.00"):
        check_parity(network, _with_bias_moved(model, 0.11 * largest), pixels, settings)


def test_the_tolerance_is_the_boundary() -> None:
    network, pixels = tiny_network(), tiny_pixels()
    with torch.no_grad():
        network.module[-1].weight.mul_(10)  # logits above one
    model = _with_bias_moved(export_onnx(network), 0.01)
    moved = check_parity(network, model, pixels, ParitySettings(tolerance=0.5))
    exact = moved.max_relative_difference
    assert check_parity(network, model, pixels, ParitySettings(tolerance=exact * 1.001))
    with pytest.raises(ParityError):
        check_parity(network, model, pixels, ParitySettings(tolerance=exact * 0.999))


def test_a_class_that_changes_lowers_the_agreement() -> None:
    network, pixels = tiny_network(), tiny_pixels()
    logits = network.module(normalize(pixels, network.spec))
    model = _with_bias_moved(export_onnx(network), 0.2, only=int(logits.mean(0).argmin()))
    record = check_parity(network, model, pixels, ParitySettings(tolerance=0.99))
    moved = logits.detach().clone()
    moved[:, int(logits.mean(0).argmin())] += 0.2
    assert record.top1_agreement == (moved.argmax(1) == logits.argmax(1)).float().mean()


def test_logits_that_are_not_finite_are_not_parity() -> None:
    network, pixels = tiny_network(), tiny_pixels()
    model = _with_bias_moved(export_onnx(network), float("nan"))
    with pytest.raises(ParityError):
        check_parity(network, model, pixels)


def test_another_number_of_classes_is_not_parity() -> None:
    model = export_onnx(tiny_network(classes=4))
    with pytest.raises(ParityError, match=r"shape \(6, 4\); PyTorch's have \(6, 5\)"):
        check_parity(tiny_network(classes=5), model, tiny_pixels())


@pytest.mark.parametrize("pixels", [tiny_pixels(0), tiny_pixels(2, size=16)])
def test_images_that_do_not_fit_are_refused(pixels: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"at least one image \(3, 8, 8\) is needed"):
        check_parity(tiny_network(), export_onnx(tiny_network()), pixels)


def test_the_modules_mode_is_kept() -> None:
    network = tiny_network()
    model = export_onnx(network)
    network.module.train()
    first = next(network.module.children()).eval()
    check_parity(network, model, tiny_pixels())
    assert network.module.training
    assert not first.training, "which its whole may not set"


@pytest.mark.parametrize("settings", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"threads": 0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        ParitySettings(**settings)  # type: ignore[arg-type]


def test_a_file_that_the_runtime_cannot_load_is_refused() -> None:
    with pytest.raises(InputRejectedError, match="ONNX Runtime cannot load"):
        check_parity(tiny_network(), b"no network", tiny_pixels())


def test_a_network_of_vectors_is_refused() -> None:
    network = tiny_network()
    proto = onnx.load_model_from_string(export_onnx(network))
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(InputRejectedError, match="height and width must be fixed"):
        check_parity(network, proto.SerializeToString(), tiny_pixels())
    flat = replace(network, module=nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    proto = onnx.load_model_from_string(export_onnx(flat))
    del proto.graph.node[0]
    proto.graph.node[0].input[0] = "input"
    del proto.graph.value_info[:]
    proto.graph.input[0].CopyFrom(
        onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 192])
    )
    with pytest.raises(InputRejectedError, match="one input"):
        check_parity(network, proto.SerializeToString(), tiny_pixels())


def _with_bias_moved(model: bytes, by: float, only: int | None = None) -> bytes:
    """The same file with the last layer's bias moved."""
    proto = onnx.load_model_from_string(model)
    name = next(node for node in proto.graph.node if node.op_type == "Gemm").input[2]
    bias = next(one for one in proto.graph.initializer if one.name == name)
    moved = numpy_helper.to_array(bias).copy()
    moved[slice(None) if only is None else only] += np.float32(by)
    bias.CopyFrom(numpy_helper.from_array(moved, name))
    return bytes(proto.SerializeToString())
