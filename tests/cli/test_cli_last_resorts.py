"""What ends a command before or beside all that it does itself is one line, and a document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FULL = """
import os, resource, typer
from typing import Annotated
from edgeclean.cli import app, main

@app.command('full')
def full(json: Annotated[bool, typer.Option('--json')] = False) -> None:
    {what}
main()
"""
# Root has as many processes as it likes.
TOO_MANY_PROCESSES = (
    "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); os.getuid() or os.setuid(1); os.fork()"
)
TOO_MANY_FILES = (
    "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); [open('/dev/null') for _ in range(32)]"
)

GONE = (
    "import os, sys\nos.rmdir(os.getcwd())\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'edgeclean', *sys.argv[1:]])"
)


@pytest.mark.parametrize(
    ("what", "kind", "code", "message"),
    [
        ("bytearray(1 << 62)", "NoMemoryError", 1, "there is no memory left; "),
        (TOO_MANY_PROCESSES, "UsageError", 2, "the system gives this command no further process "),
        (TOO_MANY_FILES, "UsageError", 2, "the system gives this command no further process or "),
        ("raise OSError(12, 'fork')", "NoMemoryError", 1, "there is no memory left; "),
    ],
)
def test_what_the_system_has_no_more_of_is_one_line(
    what: str, kind: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run = [sys.executable, "-c", FULL.format(what=what), "full"]
    plain = subprocess.run(run, capture_output=True, text=True, check=False)
    assert plain.returncode == code
    assert plain.stderr.startswith(f"error: {message}")
    assert plain.stderr.count("\n") == 1
    asked = subprocess.run([*run, "--json"], capture_output=True, text=True, check=False)
    error = json.loads(asked.stdout)["error"]
    assert (error["kind"], error["exit_code"], asked.returncode) == (kind, code, code)
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
