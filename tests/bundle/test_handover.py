"""Hand-over kits: what a vendor's own converter is given, and that nobody has changed it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_files import make_manifest_fit
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_networks import PreActivation, tiny_contents, tiny_network, tiny_pixels
from torch import nn

from edgeclean.bundle import handover_check
from edgeclean.bundle import manifest as texts
from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.handover import MOST_IMAGES, check_handover, handover_files
from edgeclean.bundle.handover_texts import CONVERTERS
from edgeclean.bundle.verify import verify_bundle
from edgeclean.devices.targets import load_target
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.networks.pixels import normalize
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.precision.lower import PrecisionSettings, lower_precision

TARGETS = {"rk3588": "rknn", "hailo-8": "hailo", "stm32": "stedgeai", "esp32-p4": "esp-dl"}
NETWORK = tiny_network(seed=0)
ABOUT = {
    "input_shape": [3, 8, 8],
    "mean": list(NETWORK.spec.mean),
    "std": list(NETWORK.spec.std),
    "opset": 17,
}


@pytest.fixture(scope="module", params=sorted(TARGETS))
def pristine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the kit of one converter, in a folder that a shell could misread."""
    target = load_target(request.param)
    contents = tiny_contents()
    kit = handover_files(target, ABOUT, tiny_pixels(5))
    folder = tmp_path_factory.mktemp("kits") / "mit Leerzeichen & Ümläuten"
    own = {**contents.reproducible_files, **kit}
    write_bundle(folder, replace(contents, target=asdict(target), reproducible_files=own))
    return folder


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


def folder_of(bundle: Path) -> Path:
    target = json.loads((bundle / "manifest.json").read_bytes())["target"]
    return bundle / target["runtime"]


def relist(bundle: Path, name: str, *, gone: bool = False) -> None:
    """What a tamperer does after a file came or went: manifest and hashes fit again."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    if gone:
        del manifest["files"][name]
    else:
        manifest["files"][name] = {}
    (bundle / "manifest.json").write_bytes(texts.canonical_json(manifest))
    make_manifest_fit(bundle)


def test_a_kit_is_bound_and_verified(bundle: Path) -> None:
    record = verify_bundle(bundle)
    kit = [name for name in record.files if name.startswith(f"{folder_of(bundle).name}/")]
    listed = json.loads((bundle / "manifest.json").read_bytes())["files"]
    assert set(kit) <= set(listed)
    readme = (folder_of(bundle) / "README.md").read_text("utf-8")
    assert "has not run here" in readme
    assert "nothing of what it makes of this network was checked" in " ".join(readme.split())
    assert f"build/{folder_of(bundle).name}/convert." in readme


def test_no_text_keeps_a_placeholder(bundle: Path) -> None:
    for path in folder_of(bundle).iterdir():
        if path.suffix in {".md", ".py", ".sh", ".txt", ".alls"}:
            text = path.read_text("utf-8")
            assert text.strip()
            for word in ("<chip>", "<mean", "<std", "<images>", "<listed>", "<opset>", "<height>"):
                assert word not in text, (path.name, word)


def test_any_file_of_a_kit_that_is_swapped_is_refused(bundle: Path) -> None:
    for path in sorted(folder_of(bundle).rglob("*")):
        if path.is_file():
            name, content = path.relative_to(bundle).as_posix(), path.read_bytes()
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            with pytest.raises(InputRejectedError, match=f"{name} was changed"):
                verify_bundle(bundle)
            path.write_bytes(content)
    assert verify_bundle(bundle)


def test_a_program_that_is_changed_is_refused_though_all_hashes_fit(bundle: Path) -> None:
    kit = folder_of(bundle)
    (program,) = kit.glob("convert.*")
    program.write_bytes(program.read_bytes() + b"\n# rm -rf /\n")
    make_manifest_fit(bundle)
    with pytest.raises(InputRejectedError, match=r"convert\.\w+ is not what edgeclean .* writes"):
        verify_bundle(bundle)


def test_a_chip_that_is_a_piece_of_program_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["target"]["converter_target"] = 'x"; import os; os.system("id'
    (bundle / "manifest.json").write_bytes(texts.canonical_json(manifest))
    make_manifest_fit(bundle)
    with pytest.raises(InputRejectedError, match="schema at target/converter_target"):
        verify_bundle(bundle)


def test_a_kit_that_lacks_a_file_or_has_one_more_is_refused(bundle: Path) -> None:
    kit = folder_of(bundle)
    (kit / "more.py").write_bytes(b"print()\n")
    relist(bundle, f"{kit.name}/more.py")
    with pytest.raises(InputRejectedError, match=r"more\.py is no part of the kit"):
        verify_bundle(bundle)
    (kit / "more.py").unlink()
    relist(bundle, f"{kit.name}/more.py", gone=True)
    (program,) = kit.glob("convert.*")
    program.unlink()
    relist(bundle, f"{kit.name}/{program.name}", gone=True)
    with pytest.raises(InputRejectedError, match=rf"{program.name} is missing from the bundle"):
        verify_bundle(bundle)


def test_a_kit_in_a_bundle_for_another_target_is_refused(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["target"]["runtime"] = "onnxruntime"
    (bundle / "manifest.json").write_bytes(texts.canonical_json(manifest))
    make_manifest_fit(bundle)
    with pytest.raises(InputRejectedError, match="of a kit that the target has none of"):
        verify_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"\x93NUMPY" + bytes(200), bytes(10_000)])
def test_calibration_images_that_are_none_are_refused_though_all_hashes_fit(
    bundle: Path, content: bytes
) -> None:
    kit = folder_of(bundle)
    data = [kit / "calibration.npy", kit / "images/002.png"]
    for path in data:
        if path.exists():
            path.write_bytes(content)
            make_manifest_fit(bundle)
            with pytest.raises(InputRejectedError, match=f"{path.name} (is no PNG|does not hold)"):
                verify_bundle(bundle)


def test_a_kit_of_another_version_is_judged_by_its_hashes_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover_check, "__version__", "0.0.1")
    (program,) = folder_of(bundle).glob("convert.*")
    program.write_bytes(program.read_bytes() + b"\n")
    make_manifest_fit(bundle)
    assert verify_bundle(bundle)


def levels_of(name: str, files: dict[str, bytes]) -> Any:
    """The calibration images of a kit as their converter reads them, [n, c, h, w]."""
    if name == "rk3588":
        listed = files["rknn/dataset.txt"].decode().split()
        opened = [Image.open(io.BytesIO(files[f"rknn/{one}"])) for one in listed]
        planes = [np.asarray(one) for one in opened]
        return np.stack([one[None] if one.ndim == 2 else one.transpose(2, 0, 1) for one in planes])
    content = files[f"{TARGETS[name]}/calibration.npy"]
    found = np.load(io.BytesIO(content), allow_pickle=False)
    return found.transpose(0, 3, 1, 2) if name == "hailo-8" else found


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["rk3588", "hailo-8", "esp32-p4"]),
    images=st.integers(1, 70),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_the_images_come_out_as_they_went_in(
    name: str, images: int, channels: int, height: int, width: int
) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (images, channels, height, width), np.uint8)
    pixels = tiny_pixels(1).new_tensor(drawn) / 255
    about = {**ABOUT, "input_shape": [channels, height, width], "mean": [0.1] * channels}
    target, about["std"] = load_target(name), [0.2] * channels
    files = handover_files(target, about, pixels)
    np.testing.assert_array_equal(levels_of(name, files), drawn[:MOST_IMAGES])
    manifest = {"target": asdict(target), "model": about, "versions": {}}
    handover_check.check_handover_files(manifest, files)
    array = f"{TARGETS[name]}/calibration.npy"
    for content in (files[array] + b"\0", files[array][:-1]) if array in files else ():
        if height * width * channels > 1:  # else it is a whole image more or less
            with pytest.raises(InputRejectedError, match="does not hold bytes"):
                handover_check.check_handover_files(manifest, {**files, array: content})
    other = {**about, "input_shape": [channels, height + 1, width]}
    with pytest.raises(InputRejectedError):
        handover_check.check_handover_files({**manifest, "model": other}, files)


def test_the_same_kit_has_the_same_bytes() -> None:
    for name in TARGETS:
        once, again = (handover_files(load_target(name), ABOUT, tiny_pixels(3)) for _ in "ab")
        assert once == again
    assert handover_files(load_target("cpu"), ABOUT, tiny_pixels(3)) == {}


def test_a_network_is_checked_for_what_the_documentation_says() -> None:
    model = export_onnx(NETWORK, ExportSettings(opset=17))
    for name in TARGETS:
        target = load_target(name)
        check_handover(export_onnx(NETWORK, ExportSettings(opset=target.opset)), target)
    check_handover(model, load_target("cpu"))
    rknn, esp = load_target("rk3588"), load_target("esp32-p4")
    with pytest.raises(UsageError, match=r"is at opset 17, and RKNN-Toolkit2 .* reads 11 to 12"):
        check_handover(model, replace(rknn, opset_max=12))
    with pytest.raises(UsageError, match=r"has an open batch; leave export.batch at 1"):
        check_handover(export_onnx(NETWORK, ExportSettings(batch=None)), rknn)
    with pytest.raises(UsageError, match="the network has 4; leave"):
        check_handover(export_onnx(NETWORK, ExportSettings(batch=4)), rknn)
    few = replace(esp, operators=("Conv", "Relu", "Gemm", "Flatten", "GlobalAveragePool"))
    with pytest.raises(InputRejectedError, match="the network uses Add, and the documentation of"):
        check_handover(export_onnx(NETWORK, ExportSettings(opset=13)), few)
    norm = export_onnx(tiny_network(PreActivation(8)), ExportSettings(opset=13))
    with pytest.raises(InputRejectedError, match="uses BatchNormalization, and the documentation"):
        check_handover(norm, esp)


def test_rknn_calibrates_on_pictures_alone() -> None:
    five = tiny_network()
    module = nn.Sequential(nn.Conv2d(5, 3, 1), five.module).eval()
    spec = replace(five.spec, input_shape=(5, 8, 8), mean=(0.5,) * 5, std=(0.25,) * 5)
    model = export_onnx(replace(five, module=module, spec=spec))
    with pytest.raises(InputRejectedError, match=r"pictures of 1 or 3 channels, and .* have 5"):
        check_handover(model, load_target("rk3588"))
    check_handover(
        export_onnx(replace(five, module=module, spec=spec), ExportSettings(opset=11)),
        load_target("hailo-8"),
    )


def test_int8_for_st_has_one_symmetric_scale_for_each_tensor() -> None:
    model, st_target = export_onnx(NETWORK), load_target("stm32")
    one, many = (
        lower_precision(
            model,
            NETWORK.spec,
            tiny_pixels(48),
            PrecisionSettings(format="int8", scales=scales, int8_signal_db=10.0),
        ).model
        for scales in ("tensor", "channel")
    )
    check_handover(one, st_target)
    with pytest.raises(UsageError, match=r"one symmetric scale for each tensor, and .* has [48];"):
        check_handover(many, st_target)


PLAYED = {
    "rk3588": (
        "rknn/api.py",
        """
class RKNN:
    def __init__(self, verbose): pass
    def config(self, **said): print("config", said)
    def load_onnx(self, model): open(model, "rb").read(); return 0
    def build(self, do_quantization, dataset):
        for line in open(dataset): open(line.strip(), "rb").read()
        print("images", len(open(dataset).readlines())); return 0
    def export_rknn(self, name): open(name, "w").write("rknn"); return 0
    def release(self): pass
""",
        "model.rknn",
    ),
    "esp32-p4": (
        "esp_ppq/api.py",
        """
def espdl_quantize_onnx(onnx_import_file, espdl_export_file, calib_dataloader, **said):
    open(onnx_import_file, "rb").read()
    batches = [said["collate_fn"](one) for one in calib_dataloader]
    print(said["target"], said["input_shape"], len(batches), batches[0].dtype)
    print("first", batches[0].flatten()[:3].tolist())
    open(espdl_export_file, "w").write("espdl")
""",
        "model.espdl",
    ),
}


@pytest.mark.parametrize("name", sorted(PLAYED))
def test_the_program_runs_from_anywhere_against_a_stand_in(name: str, tmp_path: Path) -> None:
    """A stand-in with the converter's interface: the converter itself has not run."""
    module, code, made = PLAYED[name]
    (tmp_path / "site" / module).parent.mkdir(parents=True)
    (tmp_path / "site" / module).write_text(code, "utf-8")
    bundle = tmp_path / "Bündel 1"
    for file, content in handover_files(load_target(name), ABOUT, tiny_pixels(3)).items():
        (bundle / file).parent.mkdir(parents=True, exist_ok=True)
        (bundle / file).write_bytes(content)
    (bundle / "model.onnx").write_bytes(b"onnx")
    before = sorted(bundle.rglob("*"))
    program = bundle / TARGETS[name] / "convert.py"
    words = [sys.executable, "-B", str(program), "aus gabe"]
    held: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    held["env"] = {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(words, **held)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "aus gabe" / made).is_file()
    assert sorted(bundle.rglob("*")) == before
    if name == "rk3588":
        assert "'mean_values': [[127.5, 102.0, 76.5]]" in done.stdout
        assert "'target_platform': 'rk3588'" in done.stdout
        assert "images 3" in done.stdout
    else:
        assert "esp32p4 [1, 3, 8, 8] 3 torch.float32" in done.stdout
        first = normalize(tiny_pixels(3), NETWORK.spec)[0, 0, 0, :3].tolist()
        got = json.loads(done.stdout.split("first ")[1])
        np.testing.assert_allclose(got, first, atol=0.5 / 255 / 0.2)
    if name == "rk3588":
        again = subprocess.run(words, **held)
        assert again.returncode == 1
        assert again.stderr.strip().endswith("File exists; name a new folder")


@pytest.mark.parametrize(("name", "tool"), [("hailo-8", "hailo"), ("stm32", "stedgeai")])
def test_the_script_calls_the_tool_in_a_new_folder(name: str, tool: str, tmp_path: Path) -> None:
    bundle, output = tmp_path / "Bündel 1", tmp_path / "aus gabe"
    for file, content in handover_files(load_target(name), ABOUT, tiny_pixels(3)).items():
        (bundle / file).parent.mkdir(parents=True, exist_ok=True)
        (bundle / file).write_bytes(content)
    (bundle / "model.onnx").write_bytes(b"onnx")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / tool).write_text('#!/bin/sh\necho "$(pwd):" "$@"\n', "utf-8")
    (programs / tool).chmod(0o755)
    script = bundle / TARGETS[name] / "convert.sh"
    held: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    held["env"] = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run(["sh", str(script), "aus gabe"], **held)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{output}: ") for line in lines)
    assert (output / "model.onnx").read_bytes() == b"onnx"
    if tool == "hailo":
        assert "optimize model.har --hw-arch hailo8 --calib-set-path calibration.npy" in lines[1]
        script_of_layers = (output / "model.alls").read_text("utf-8")
        assert script_of_layers == (
            "normalization1 = normalization([127.5, 102.0, 76.5], [63.75, 63.75, 51.0])\n"
        )
    assert subprocess.run(["sh", str(script), "aus gabe"], **held).returncode != 0
    assert subprocess.run(["sh", str(script)], **held).returncode == 2


def test_every_target_with_a_converter_has_a_kit() -> None:
    from edgeclean.devices import targets

    assert set(targets.CONVERTERS) == set(CONVERTERS) == set(TARGETS.values())
