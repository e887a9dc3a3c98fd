"""The whole run where layers become separable kernels: its bundle, its report, the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_checkpoint import QUICK, spec, write_checkpoint

from edgeclean.bundle.verify import verify_bundle
from edgeclean.config import overlay, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.pipeline import WrittenCompression, compress, inspect_checkpoint
from edgeclean.report.report import check_report
from edgeclean.runner import Cache

ASKED = {"ranks": {"ratio": 1.5, "forms": ["separable"]}, "precision": {"format": "int8"}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


def run(checkpoint: Path, output: Path, kept: Path) -> WrittenCompression:
    cache = Cache(folder=kept, notify=lambda _line: None)
    settings = settings_for(load_target("cpu"), overlay(QUICK, ASKED))
    return compress(
        *(checkpoint, spec(), output, settings), code_folder=checkpoint.parent, cache=cache
    )


def test_a_bundle_of_separable_kernels_is_told_of_and_made_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    written = run(checkpoint, tmp_path / "build", kept)
    compression = written.compression
    assert compression.parity.max_relative_difference <= compression.parity.tolerance
    verify_bundle(written.bundle.path)
    report = json.loads((written.bundle.path / "report.json").read_text("utf-8"))
    check_report(report)
    rows = [row for row in report["layers"] if row["separable_rank"]]
    assert rows
    page = (written.bundle.path / "report.html").read_text("utf-8")
    for row in rows:
        assert row["separable_first"] in {"vertical", "horizontal"}
        assert row["macs_after"] < row["macs_before"]
        sides = ("3x1", "1x3") if row["separable_first"] == "vertical" else ("1x3", "3x1")
        told = f"{sides[0]} to {row['separable_rank']}, {sides[1]}"
        assert told.replace("x", "\N{MULTIPLICATION SIGN}") in page
    manifest = (written.bundle.path / "manifest.json").read_text("utf-8")
    assert '"separable"' in manifest
    again = run(checkpoint, tmp_path / "again", kept)
    for name in ("model.onnx", "manifest.json"):
        first, second = (one.bundle.path / name for one in (written, again))
        assert first.read_bytes() == second.read_bytes(), name


def test_inspect_says_what_would_become_separable(checkpoint: Path) -> None:
    settings = settings_for(load_target("cpu"), overlay(QUICK, ASKED))
    inspected = inspect_checkpoint(checkpoint, spec(), settings, code_folder=checkpoint.parent)
    assert any(row.becomes.startswith(("3x1 to ", "1x3 to ")) for row in inspected.layers)
