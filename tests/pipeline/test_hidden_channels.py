"""The whole run where hidden channels go: its bundle, its report, and the same bytes again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_checkpoint import QUICK, spec, write_checkpoint

from edgeclean.bundle.verify import verify_bundle
from edgeclean.config import overlay, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.networks.cost import count_macs
from edgeclean.pipeline import WrittenCompression, compress, inspect_checkpoint
from edgeclean.report.report import check_report
from edgeclean.runner import Cache

ASKED = {"ranks": {"ratio": 1.5, "forms": ["hidden"]}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(folder=tmp_path_factory.mktemp("kept"), notify=lambda _line: None)


@pytest.fixture(scope="module")
def written(
    checkpoint: Path, kept: Cache, tmp_path_factory: pytest.TempPathFactory
) -> WrittenCompression:
    settings = settings_for(load_target("cpu"), overlay(QUICK, ASKED))
    output = tmp_path_factory.mktemp("bundles") / "build"
    return compress(checkpoint, spec(), output, settings, code_folder=checkpoint.parent, cache=kept)


def test_the_bundle_holds_the_cut_network(written: WrittenCompression) -> None:
    compression, shape = written.compression, spec().input_shape
    before, after = (
        count_macs(one.module, shape) for one in (compression.original, compression.compressed)
    )
    assert before / after >= 1.5
    assert compression.parity.max_relative_difference <= compression.parity.tolerance
    verify_bundle(written.bundle.path)


def test_the_report_and_the_manifest_say_what_is_left(written: WrittenCompression) -> None:
    report = json.loads((written.bundle.path / "report.json").read_text("utf-8"))
    check_report(report)
    cut = [row for row in report["layers"] if row["fate"] == "cut"]
    assert cut
    for row in cut:
        assert row["kept_out"] or row["kept_in"]
        assert row["macs_after"] < row["macs_before"]
    manifest = (written.bundle.path / "manifest.json").read_text("utf-8")
    assert '"hidden"' in manifest
    page = (written.bundle.path / "report.html").read_text("utf-8")
    row = next(row for row in cut if row["kept_out"])
    assert f"{row['kept_out']} of {row['shape'][0]} out" in page


def test_a_run_that_is_taken_up_again_gives_the_same_bytes(
    written: WrittenCompression, checkpoint: Path, kept: Cache, tmp_path: Path
) -> None:
    settings = settings_for(load_target("cpu"), overlay(QUICK, ASKED))
    again = compress(
        *(checkpoint, spec(), tmp_path / "again", settings),
        code_folder=checkpoint.parent,
        cache=kept,
    )
    for name in ("model.onnx", "manifest.json"):
        first, second = (one.bundle.path / name for one in (written, again))
        assert first.read_bytes() == second.read_bytes(), name


def test_inspect_says_what_would_go(checkpoint: Path) -> None:
    settings = settings_for(load_target("cpu"), overlay(QUICK, ASKED))
    inspected = inspect_checkpoint(checkpoint, spec(), settings, code_folder=checkpoint.parent)
    assert any(row.becomes.startswith("hidden ") for row in inspected.layers)
