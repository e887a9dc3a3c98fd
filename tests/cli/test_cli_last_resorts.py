"""What ends a command before or beside all that it does itself is one line, and a document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FULL = (
    "import typer\nfrom typing import Annotated\nfrom edgeclean.cli import app, main\n"
    "@app.command('full')\n"
    "def full(json: Annotated[bool, typer.Option('--json')] = False) -> None:\n"
    "    bytearray(1 << 62)\n"
    "main()"
)

GONE = (
    "import os, sys\nos.rmdir(os.getcwd())\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'edgeclean', *sys.argv[1:]])"
)


def test_no_memory_is_one_line() -> None:
    run = [sys.executable, "-c", FULL, "full"]
    plain = subprocess.run(run, capture_output=True, text=True, check=False)
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: there is no memory left; ")
    assert plain.stderr.count("\n") == 1
    asked = subprocess.run([*run, "--json"], capture_output=True, text=True, check=False)
    error = json.loads(asked.stdout)["error"]
    assert (error["kind"], error["exit_code"], asked.returncode) == ("NoMemoryError", 1, 1)
    assert asked.stderr == plain.stderr == f"error: {error['message']}\n"


@pytest.mark.parametrize("words", [["doctor", "--json"], ["export", "a.onnx", "--json"]])
def test_a_folder_that_is_gone_is_one_line(words: list[str], tmp_path: Path) -> None:
    gone, temporary = tmp_path / "gone", tmp_path / "tmp"
    gone.mkdir()
    temporary.mkdir()
    root = str(Path(__file__).parents[2])
    said = subprocess.run(
        [sys.executable, "-c", GONE, *words],
        cwd=gone,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(temporary), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 2
    assert said.stderr.startswith("error: the current folder cannot be named (")
    assert said.stderr.count("\n") == 1
    assert json.loads(said.stdout)["error"]["kind"] == "UsageError"
    assert list(temporary.iterdir()) == []
