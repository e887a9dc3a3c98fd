"""A run that is refused or fails writes nothing, and leaves what was there whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_evidence import scan_report
from small_checkpoint import QUICK, quick_settings, spec, write_checkpoint

from edgeclean import pipeline
from edgeclean.bundle.verify import verify_bundle
from edgeclean.config import overlay
from edgeclean.errors import (
    BackdoorSuspectedError,
    InputRejectedError,
    OutputInUseError,
    ParityError,
    RatioError,
    UsageError,
)
from edgeclean.gates import Policy
from edgeclean.pipeline import compress


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


def test_a_late_failure_leaves_the_old_bundle_whole_and_nothing_beside_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    compress(checkpoint, spec(), output, quick_settings(), code_folder=checkpoint.parent)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(ParityError):
        compress(
            checkpoint,
            spec(),
            output,
            quick_settings(parity={"tolerance": 1e-12}),
            code_folder=checkpoint.parent,
        )
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"ranks": {"ratio": 1000.0}}, RatioError, "cannot be met"),
        ({"decompose": {"keep": ["nothing"]}}, UsageError, "no layer of this network"),
        ({"target": "jetson-nano", "export": {"opset": 17}}, UsageError, "opset 7 to 13"),
        ({"target": "toaster"}, UsageError, "not known"),
    ],
)
def test_a_refusal_writes_nothing(
    checkpoint: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    settings = quick_settings(**overlay(QUICK, changes))
    with pytest.raises(error, match=words):
        compress(checkpoint, spec(), tmp_path / "b", settings, code_folder=checkpoint.parent)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_and_an_output_in_use_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputRejectedError, match="cannot be read"):
        compress(tmp_path / "no.pth", spec(), tmp_path / "b", quick_settings())
    from edgeclean.files.atomic import hold_folder

    with hold_folder(tmp_path / "b"), pytest.raises(OutputInUseError):
        compress(
            checkpoint, spec(), tmp_path / "b", quick_settings(), code_folder=checkpoint.parent
        )


def test_a_suspicion_stops_the_run_only_if_asked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suspicious_scan(*_: Any, **__: Any) -> Any:
        return scan_report()

    monkeypatch.setattr(pipeline, "scan", suspicious_scan)
    with pytest.raises(BackdoorSuspectedError, match="class 2"):
        compress(
            checkpoint,
            spec(),
            tmp_path / "b",
            quick_settings(),
            policy=Policy(fail_on_backdoor=True),
            code_folder=checkpoint.parent,
        )
    assert list(tmp_path.iterdir()) == []
    written = compress(
        checkpoint, spec(), tmp_path / "b", quick_settings(), code_folder=checkpoint.parent
    )
    assert written.report["scan"]["verdict"] == "suspected"
    assert (written.bundle.path / "trigger-0-class-2.png").is_file()
    verify_bundle(written.bundle.path)
