"""Files of other runtimes in a bundle: bound by the manifest, and run again by `verify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_files import make_manifest_fit
from command_line import Terminal
from runtime_bundles import bundled, runtime_bundle
from runtime_installed import every_runtime, installed_runtime
from safetensors.numpy import load, save
from tiny_networks import tiny_contents, tiny_network

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.verify import verify_bundle
from edgeclean.errors import InputRejectedError
from edgeclean.files.schema import validator
from edgeclean.measure.runtimes import CONVERTED
from exporters.onnx_exporter import export_onnx


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with MNN's one file, which is the quickest to run."""
    folder = tmp_path_factory.mktemp("pristine") / "build mit Ümläuten"
    write_bundle(folder, replace(tiny_contents(), runtimes=(bundled("mnn"),)))
    return folder


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "build mit Ümläuten"))


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    change(manifest)
    (bundle / "manifest.json").write_bytes(texts.canonical_json(manifest))
    make_manifest_fit(bundle)


@every_runtime
def test_a_runtimes_files_are_run_again(name: str, tmp_path: Path) -> None:
    one = bundled(name)
    write_bundle(tmp_path / "build", replace(tiny_contents(), runtimes=(one,)))
    (check,) = verify_bundle(tmp_path / "build").runtimes
    assert (check.name, check.made_with, check.not_run) == (name, one.version, None)
    assert check.version == one.version
    assert check.max_relative_difference is not None
    assert check.max_relative_difference <= check.tolerance
    manifest = json.loads((tmp_path / "build/manifest.json").read_bytes())
    said = manifest["runtimes"][name]
    assert said["made_by"] == dict(one.made_by)
    assert set(said["files"]) == {file for file in manifest["files"] if "/" in file} - {
        "triggers/class_3.png"
    }


def test_a_bundle_without_other_runtimes_has_none_in_its_manifest(tmp_path: Path) -> None:
    write_bundle(tmp_path / "build", tiny_contents())
    assert "runtimes" not in json.loads((tmp_path / "build/manifest.json").read_bytes())
    assert verify_bundle(tmp_path / "build").runtimes == ()


def test_a_file_that_is_swapped_is_found_though_all_hashes_fit(bundle: Path) -> None:
    other = installed_runtime("mnn").converted(export_onnx(tiny_network(seed=1))).files
    (bundle / "mnn/model.mnn").write_bytes(other["model.mnn"])
    with pytest.raises(InputRejectedError, match=r"mnn/model.mnn was changed: its SHA-256"):
        verify_bundle(bundle)
    make_manifest_fit(bundle)
    with pytest.raises(InputRejectedError, match="the files of mnn differ from their stored logit"):
        verify_bundle(bundle)


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"<xml/>"])
def test_a_file_that_is_none_is_one_line(bundle: Path, content: bytes) -> None:
    (bundle / "mnn/model.mnn").write_bytes(content)
    make_manifest_fit(bundle)
    with pytest.raises(InputRejectedError, match="the files of mnn cannot be run") as refusal:
        verify_bundle(bundle)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_missing_added_or_not_listed_is_named(bundle: Path) -> None:
    (bundle / "ncnn").mkdir()
    (bundle / "ncnn/model.param").write_bytes(b"7767517\n")
    change_manifest(bundle, lambda one: one["files"].update({"ncnn/model.param": {}}))
    with pytest.raises(InputRejectedError, match=r"ncnn/model.param is of a runtime that the mani"):
        verify_bundle(bundle)
    shutil.rmtree(bundle / "ncnn")
    change_manifest(bundle, lambda one: one["files"].pop("ncnn/model.param"))
    assert verify_bundle(bundle).runtimes
    change_manifest(bundle, lambda one: one["runtimes"]["mnn"].update(files=["model.onnx"]))
    with pytest.raises(InputRejectedError, match=r"the manifest lists 'model.onnx' for mnn"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one["runtimes"].update({"onnxruntime": one["runtimes"]["mnn"]}),
        lambda one: one["runtimes"]["mnn"].update(precision="fp8"),
        lambda one: one["runtimes"]["mnn"].update(tolerance=2),
        lambda one: one["runtimes"]["mnn"].pop("made_by"),
        lambda one: one["runtimes"]["mnn"].update(engine="os:system"),
    ],
)
def test_a_manifest_that_says_nonsense_of_a_runtime_is_refused(
    bundle: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    change_manifest(bundle, change)
    with pytest.raises(InputRejectedError, match=r"manifest.json does not fit its schema"):
        verify_bundle(bundle)


def test_a_precision_that_the_runtime_lacks_is_refused(tmp_path: Path) -> None:
    bundle = runtime_bundle(tmp_path / "bundle", "ncnn")
    change_manifest(bundle, lambda one: one["runtimes"]["ncnn"].update(precision="int8"))
    with pytest.raises(InputRejectedError, match="int8 was asked of ncnn"):
        verify_bundle(bundle)


def test_logits_of_a_runtime_that_are_missing_are_refused(bundle: Path) -> None:
    golden = load((bundle / "golden.safetensors").read_bytes())
    del golden["mnn"]
    (bundle / "golden.safetensors").write_bytes(save(golden))
    make_manifest_fit(bundle)
    with pytest.raises(InputRejectedError, match=r"golden.safetensors holds nothing as 'mnn'"):
        verify_bundle(bundle)


def test_a_runtime_that_is_not_here_or_too_old_is_said_and_not_run(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    about = tmp_path / "site/mnn-2.0.0.dist-info/METADATA"
    about.parent.mkdir(parents=True)
    about.write_text("Metadata-Version: 2.1\nName: mnn\nVersion: 2.0.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (check,) = verify_bundle(bundle).runtimes
    assert check.version is check.max_relative_difference is None
    assert check.not_run is not None
    assert check.not_run.startswith("mnn 2.0.0 is installed, and 3.6 or above, below 4, is what")
    said = Terminal(monkeypatch, capsys)("verify", bundle)
    assert said.code == 0
    assert "not run: mnn 2.0.0 is installed" in " ".join(said.out.split())


def test_the_schema_names_every_runtime_that_files_are_made_for() -> None:
    schema = validator("manifest").schema
    names = schema["properties"]["runtimes"]["propertyNames"]["enum"]
    assert sorted(names) == sorted(CONVERTED)


def test_the_runtimes_logits_are_not_those_of_onnx_runtime(pristine: Path) -> None:
    golden = load((pristine / "golden.safetensors").read_bytes())
    assert set(golden) == {"input", "logits", "mnn"}
    np.testing.assert_allclose(golden["mnn"], golden["logits"], atol=1e-4)
