from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from safetensors.numpy import load
from tiny_networks import tiny_contents, tiny_pixels

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.bundle import Bundle, BundleContents, hold_output, write_bundle
from edgeclean.errors import InputRejectedError, OutputInUseError, UsageError
from edgeclean.files.schema import validator
from edgeclean.networks.cost import count_macs, count_params
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.session import OnnxSession

REPRODUCIBLE = (
    "manifest.json",
    "bom.cdx.json",
    "model.onnx",
    "golden.safetensors",
    "triggers/class_3.png",
)

WRITE_ONE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tiny_networks import tiny_contents as contents
from edgeclean.bundle.bundle import write_bundle
write_bundle(Path("build"), contents(latency_ms=float(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def some_contents() -> BundleContents:
    return tiny_contents(latency_ms=1.5)


def test_a_bundle_holds_what_it_says(tmp_path: Path, some_contents: BundleContents) -> None:
    bundle = write_bundle(tmp_path / "build", some_contents)
    files = _read(bundle)
    assert set(files) == {*REPRODUCIBLE, "report.json", "report.html", "SHA256SUMS"}
    assert {name: len(content) for name, content in files.items()} == bundle.file_bytes
    assert files["model.onnx"] == some_contents.model
    manifest = json.loads(files["manifest.json"])
    assert manifest == bundle.manifest
    assert manifest["files"] == {
        name: {"bytes": len(files[name]), "sha256": texts.sha256(files[name])}
        for name in REPRODUCIBLE[1:]
    }
    assert bundle.manifest_sha256 == texts.sha256(files["manifest.json"])
    report = json.loads(files["report.json"])
    assert report == {"latency_ms": 1.5, "manifest_sha256": bundle.manifest_sha256}


def test_the_manifest_says_how_it_was_made(tmp_path: Path, some_contents: BundleContents) -> None:
    manifest = write_bundle(tmp_path / "build", some_contents).manifest
    module = some_contents.network.module
    assert manifest["source"] == {
        "architecture": "tiny.py:make",
        "external_sha256": {},
        "sha256": "ab" * 32,
    }
    assert manifest["model"] == {
        "batch": 1,
        "classes": 5,
        "input_name": "input",
        "input_shape": [3, 8, 8],
        "macs": count_macs(module, (3, 8, 8)),
        "mean": [0.5, 0.4, 0.3],
        "opset": 17,
        "output_name": "logits",
        "params": count_params(module),
        "std": [0.25, 0.25, 0.2],
    }
    assert manifest["seed"] == 7
    assert manifest["configuration"] == {"ratio": 2.0, "input_shape": [3, 8, 8], "keep": ["0"]}
    assert manifest["history"][0]["notes"] == {"ranks": {"0": [4, 4]}}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["golden"] == {"images": 4, "tolerance": 1e-4}


def test_an_open_batch_is_said(tmp_path: Path, some_contents: BundleContents) -> None:
    model = export_onnx(some_contents.network, ExportSettings(opset=13, batch=None))
    manifest = write_bundle(tmp_path / "build", replace(some_contents, model=model)).manifest
    assert (manifest["model"]["batch"], manifest["model"]["opset"]) == (None, 13)


def test_golden_logits_are_those_of_the_file(tmp_path: Path, some_contents: BundleContents) -> None:
    bundle = write_bundle(tmp_path / "build", some_contents)
    golden = load((bundle.path / "golden.safetensors").read_bytes())
    images = (tiny_pixels(4).numpy() - [[[[0.5]], [[0.4]], [[0.3]]]]) / [
        [[[0.25]], [[0.25]], [[0.2]]]
    ]
    assert golden["input"] == pytest.approx(images, abs=1e-6)
    assert (golden["logits"] == OnnxSession(some_contents.model).predict(golden["input"])).all()


def test_two_runs_elsewhere_give_the_same_bytes(tmp_path: Path) -> None:
    """Another folder, time zone, hash seed, user folder and measured latency."""
    written = []
    for name, zone, seed in (("one", "UTC", "1"), ("two/deeper", "Asia/Kathmandu", "2")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        environment = {**os.environ, "TZ": zone, "PYTHONHASHSEED": seed, "HOME": str(folder)}
        tests = Path(__file__).parents[1] / "support"
        subprocess.run(
            [sys.executable, "-c", WRITE_ONE, str(tests), seed],
            cwd=folder,
            env=environment,
            check=True,
        )
        written.append(
            {
                name: (folder / "build" / name).read_bytes()
                for name in (*REPRODUCIBLE, "report.json")
            }
        )
    one, two = written
    for name in REPRODUCIBLE:
        assert one[name] == two[name], name
        for secret in (str(tmp_path), str(Path.home()), str(Path(__file__).parents[2])):
            assert secret.encode() not in one[name]
    assert one["report.json"] != two["report.json"]


def test_the_page_may_be_written_from_the_manifest_and_report(
    tmp_path: Path, some_contents: BundleContents
) -> None:
    def page(manifest: Any, report: Any) -> str:
        return f"{manifest['seed']} {report['manifest_sha256']}"

    bundle = write_bundle(tmp_path / "build", replace(some_contents, page=page))
    assert (bundle.path / "report.html").read_text() == f"7 {bundle.manifest_sha256}"


def test_a_bundle_without_a_page(tmp_path: Path, some_contents: BundleContents) -> None:
    bundle = write_bundle(tmp_path / "build", replace(some_contents, page=None))
    assert "report.html" not in bundle.file_bytes


def test_a_bundle_is_replaced_and_the_lists_of_it_go_with_it(
    tmp_path: Path, some_contents: BundleContents
) -> None:
    write_bundle(tmp_path / "build", some_contents)
    smaller = replace(some_contents, reproducible_files={})
    bundle = write_bundle(tmp_path / "build", smaller)
    assert "triggers/class_3.png" not in _read(bundle)


def test_sha256sum_reads_the_list(tmp_path: Path, some_contents: BundleContents) -> None:
    bundle = write_bundle(tmp_path / "build", some_contents)
    told = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=bundle.path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout.count(": OK") == len(bundle.file_bytes) - 1


def test_a_folder_of_somebody_else_is_refused_and_kept(
    tmp_path: Path, some_contents: BundleContents
) -> None:
    foreign = tmp_path / "site"
    foreign.mkdir()
    (foreign / "manifest.json").write_text("{}")  # many web pages have one
    (foreign / "index.html").write_text("mine")
    with pytest.raises(UsageError, match="is not an edgeclean bundle"):
        write_bundle(foreign, some_contents)
    assert (foreign / "index.html").read_text() == "mine"


def test_a_bundle_with_a_file_of_the_user_is_refused_and_kept(
    tmp_path: Path, some_contents: BundleContents
) -> None:
    bundle = write_bundle(tmp_path / "build", some_contents)
    (bundle.path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"would be lost: notes.txt is not listed"):
        write_bundle(bundle.path, some_contents)
    assert (bundle.path / "notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match=r"notes.txt"), hold_output(bundle.path):
        pass


def test_an_empty_folder_is_used(tmp_path: Path, some_contents: BundleContents) -> None:
    (tmp_path / "build").mkdir()
    assert write_bundle(tmp_path / "build", some_contents).file_bytes["model.onnx"]


def test_a_held_folder_is_written_by_its_holder_alone(
    tmp_path: Path, some_contents: BundleContents
) -> None:
    with hold_output(tmp_path / "build") as held:
        with pytest.raises(OutputInUseError):
            write_bundle(tmp_path / "build", some_contents)
        write_bundle(held, some_contents)
        (tmp_path / "build" / "appeared later").touch()
        with pytest.raises(UsageError, match="appeared later"):
            write_bundle(held, some_contents)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/absolute",
        "a//b",
        ".hidden",
        "a b",
        "",
        "model.onnx",
        "report.json",
        "a/../b",
    ],
)
def test_further_files_cannot_go_anywhere_or_replace_anything(
    name: str, some_contents: BundleContents
) -> None:
    with pytest.raises(UsageError, match="cannot name a further file"):
        replace(some_contents, reproducible_files={name: b""})


@pytest.mark.parametrize("images", [0, 17])
def test_the_number_of_golden_images_is_bounded(images: int, some_contents: BundleContents) -> None:
    with pytest.raises(UsageError, match="1 to 16 are kept"):
        replace(some_contents, golden_pixels=tiny_pixels(images))


def test_a_number_that_json_lacks_is_a_defect(
    tmp_path: Path, some_contents: BundleContents
) -> None:
    spoiled = replace(some_contents, measurements={"latency_ms": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_bundle(tmp_path / "build", spoiled)
    assert not (tmp_path / "build").exists()


def test_a_manifest_that_does_not_fit_its_schema_is_not_written(
    tmp_path: Path, some_contents: BundleContents
) -> None:
    network = replace(some_contents.network, source_sha256="unknown")
    with pytest.raises(InputRejectedError, match="does not fit its schema at source/sha256"):
        write_bundle(tmp_path / "build", replace(some_contents, network=network))
    assert not (tmp_path / "build").exists()


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(validator("manifest").schema)


def _read(bundle: Bundle) -> dict[str, bytes]:
    return {
        path.relative_to(bundle.path).as_posix(): path.read_bytes()
        for path in bundle.path.rglob("*")
        if path.is_file()
    }
