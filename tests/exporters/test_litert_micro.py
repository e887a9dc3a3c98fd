"""LiteRT in INT8, and a microcontroller's interpreter: skipped where they are not installed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runtime_installed import installed_runtime
from tiny_networks import tiny_contents, tiny_network, tiny_pixels

from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.embed import EmbedSettings, embed_bundle
from edgeclean.bundle.verify import verify_bundle
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.errors import EdgecleanError, InputRejectedError
from edgeclean.measure.runtimes import FormInputs, checked_form
from edgeclean.networks.pixels import normalize
from edgeclean.outcome import bundled
from exporters.engines.litert_engine import from_integers, to_integers
from exporters.onnx_exporter import export_onnx
from exporters.parity import ParitySettings
from exporters.precision.lower import PrecisionSettings, lower_precision
from exporters.precision.sensitivity import compare_logits
from exporters.session import OnnxSession

NETWORK = tiny_network()


def test_integers_are_what_the_scale_says() -> None:
    numbers = np.array([-9, -1, -0.26, 0, 0.24, 1, 9], np.float32)
    held = to_integers(numbers, np.int8, 0.5, -3)
    assert held.dtype == np.int8
    assert held.tolist() == [-21, -5, -4, -3, -3, -1, 15]
    np.testing.assert_allclose(from_integers(held, 0.5, -3), numbers, atol=0.25)
    assert to_integers(numbers, np.int8, 0.05, 100).tolist() == [-80, 80, 95, 100, 105, 120, 127]
    assert to_integers(numbers, np.float32, 0.0, 0) is numbers
    np.testing.assert_array_equal(from_integers(numbers, 0.0, 0), numbers)


def test_a_microcontroller_is_given_int8() -> None:
    made = settings_for(load_target("cortex-m"), {})
    assert made.precision.format == "int8"
    assert made.precision.scales == "channel"
    assert load_target("cortex-m").runtime == "litert-micro"


@pytest.mark.slow
def test_ranges_hold_what_one_image_alone_reaches() -> None:
    installed_runtime("litert")
    model, pixels = export_onnx(NETWORK), tiny_pixels(32)
    pixels[1:] = 0.5 + 0.02 * (pixels[1:] - 0.5)  # one image has contrast
    images = normalize(pixels, NETWORK.spec).numpy()
    exporter = installed_runtime("litert", precision="int8")
    files = exporter.converted(model, images).files
    expected = OnnxSession(model).predict(images)
    found = compare_logits(expected[:1], exporter.load(files).run(images)[:1])
    assert found.signal_to_noise_db > 15


@pytest.mark.slow
def test_all_is_int8_and_the_arena_is_measured(tmp_path: Path) -> None:
    installed_runtime("litert-micro")
    model, pixels = export_onnx(NETWORK), tiny_pixels(32)
    precision = PrecisionSettings(format="int8", int8_signal_db=5.0)  # its logits hardly differ
    given = FormInputs(
        network=NETWORK,
        model=model,
        lowered=lower_precision(model, NETWORK.spec, pixels, precision),
        pixels=pixels,
        golden=4,
        parity=ParitySettings(),
        precision=precision,
    )
    form = checked_form("litert-micro", given)
    assert form.arena_bytes is not None
    assert 8 * 8 * 8 < form.arena_bytes < 100_000  # one plane of the network, and not the space
    images = normalize(pixels, NETWORK.spec).numpy()
    micro = installed_runtime("litert-micro", precision="int8").load(form.files).run(images)
    phone = installed_runtime("litert", precision="int8").load(form.files).run(images)
    np.testing.assert_allclose(micro, phone, atol=np.ptp(phone) / 100)
    found = compare_logits(OnnxSession(model).predict(images), micro)
    assert found.top1_agreement == 1
    assert 8 < found.signal_to_noise_db < 60
    steps = np.unique(np.abs(np.diff(np.unique(micro))).round(7))
    assert np.allclose(steps / steps[0], np.rint(steps / steps[0]), atol=1e-2)  # 256 levels
    contents = replace(tiny_contents(), golden_pixels=pixels[:4], runtimes=(bundled(form, 0.1),))
    bundle = write_bundle(tmp_path / "mit Ümläuten", contents).path
    (check,) = verify_bundle(bundle).runtimes
    assert (check.name, check.not_run) == ("litert-micro", None)
    embedded = embed_bundle(bundle, EmbedSettings(symbol="net", file="litert-micro/model.tflite"))
    header = embedded.files["net.h"].decode()
    assert f"#define NET_ARENA_BYTES {form.arena_bytes}\n" in header
    assert "One image, int8, channels last" in header
    assert "ARENA" not in embed_bundle(bundle, EmbedSettings()).files["edgeclean_model.h"].decode()


@pytest.mark.slow
def test_a_damaged_file_is_one_line_and_images_are_needed() -> None:
    exporter = installed_runtime("litert-micro", precision="int8")
    for content in (b"", b"TFL3" * 40, bytes(2000)):
        with pytest.raises(EdgecleanError) as refusal:
            exporter.arena_bytes({"model.tflite": content})
        assert "\n" not in str(refusal.value)
    with pytest.raises(InputRejectedError, match="LiteRT calibrates INT8 on images, and none"):
        exporter.converted(export_onnx(NETWORK))
