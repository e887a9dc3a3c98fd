"""A terminal, a small checkpoint and its bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Terminal
from small_checkpoint import OPTIONS, quick_config, spec, write_checkpoint

from edgeclean import pipeline


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture
def network(source: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The checkpoint and what describes it; net.py is looked up in the working folder."""
    monkeypatch.chdir(source.parent)
    return [source, *OPTIONS]


@pytest.fixture(scope="module")
def bundle(source: Path) -> Path:
    """One bundle and the original as ONNX, for all tests that only read."""
    from edgeclean.config import PipelineSettings, read_config, settings_from

    settings = settings_from(PipelineSettings, read_config(quick_config(source.parent)))
    output = source.parent / "bundle"
    written = pipeline.compress(source, spec(), output, settings, code_folder=source.parent)
    (source.parent / "original.onnx").write_bytes(written.compression.original_model)
    return output
