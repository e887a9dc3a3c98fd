"""The real entry point, run in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from edgeclean import cli

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "matplotlib", "jinja2", "tensorly", "scipy")


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Terminal:
    """Runs the real entry point in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("TERM", "dumb")

    def __call__(self, *words: object) -> Said:
        self._monkeypatch.setattr(sys, "argv", ["edgeclean", *map(str, words)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        code = exit_.value.code
        return Said(int(code or 0), *self._capsys.readouterr())


def in_a_child(*code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", *code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])},
    )
