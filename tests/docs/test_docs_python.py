"""The Python blocks of docs/guides/python.md, run in order and as they stand.

They run on a tiny checkpoint. `settings_for` is given few steps below what a block says, so that
this takes seconds; nothing else is changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_checkpoint import CLASSES, QUICK, SIDE, write_checkpoint
from written_pages import ROOT, blocks

import edgeclean
from edgeclean.config import overlay
from exporters.precision.half import to_fp16

PAGE = ROOT / "docs" / "guides" / "python.md"
MODEL = f"""
architecture = "net.py:make"
input-shape = [3, {SIDE}, {SIDE}]
classes = {CLASSES}
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
"""


def test_the_pages_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = safetensors.torch.load_file(write_checkpoint(tmp_path))
    torch.save(weights, tmp_path / "model.pth")
    (tmp_path / "model.toml").write_text(MODEL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    settings_for = edgeclean.settings_for
    monkeypatch.setattr(
        edgeclean,
        "settings_for",
        lambda target, entries: settings_for(target, overlay(QUICK, entries)),
    )
    code = [one.text for one in blocks(PAGE) if one.language == "python"]
    assert len(code) == 2
    scope: dict[str, Any] = {}
    for text in code:
        exec(compile(text, PAGE.name, "exec"), scope)  # noqa: S102 - our own text
    written, settings = scope["written"], scope["settings"]
    assert (settings.ranks.ratio, settings.seed, settings.target) == (2.0, 7, "orin-nano")
    assert (tmp_path / "build" / "model.onnx").read_bytes() == written.compression.model
    original = (tmp_path / "original.onnx").read_bytes()
    assert original == to_fp16(written.compression.original_model)  # the target's precision
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(written.compression.scan.verdict)


def test_the_page_imports_public_names_alone() -> None:
    imports = [
        line
        for one in blocks(PAGE)
        for line in one.text.splitlines()
        if line.startswith(("import ", "from ")) and "edgeclean" in line
    ]
    assert imports
    for line in imports:
        module, names = line.removeprefix("from ").split(" import ")
        assert module == "edgeclean"
        assert set(names.split(", ")) <= set(edgeclean.__all__)
