"""However stdout and stderr are: one line where one can be said, and an exit code of the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import safetensors.torch
import torch
from command_line import Terminal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeclean import cli
from edgeclean.errors import UsageError
from edgeclean.files.text import MOST_OF_A_LINE

ROOT = Path(cli.__file__).parents[2]
LOST = "error: the answer cannot be written to stdout ("


def run(*words: object, **streams: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeclean", *map(str, words)],
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **streams.pop("env", {})},
        **streams,
    )


def full() -> IO[str]:
    return Path("/dev/full").open("w")


def unread() -> IO[str]:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("stdout", [full, unread])
@pytest.mark.parametrize(
    "words",
    [["targets"], ["targets", "--json"], ["--help"], ["--version"], ["integrations", "make"]],
)
def test_an_answer_that_cannot_be_written_is_an_error(
    stdout: Callable[[], IO[str]], words: list[str]
) -> None:
    with stdout() as lost:
        ended = run(*words, stdout=lost, stderr=subprocess.PIPE)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(LOST)


def test_a_long_command_that_cannot_answer_has_made_what_was_asked(bundle: Path) -> None:
    with unread() as lost:
        ended = run("verify", bundle, stdout=lost, stderr=subprocess.PIPE)
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1].startswith(LOST)
        made = run("embed", bundle, "-o", bundle.parent / "c", stdout=lost, stderr=subprocess.PIPE)
    assert made.returncode == 2
    assert (bundle.parent / "c" / "edgeclean_model.c").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_other_files_place(closed: str, tmp_path: Path) -> None:
    """The next file that is opened would get its number, and what is printed."""
    words = '"$0" -m edgeclean targets --json'
    ended = subprocess.run(
        ["sh", "-c", f"{words} {closed}", sys.executable],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == (2 if ">&-" in closed.replace("2>&-", "") else 0)
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_stderr_that_is_full_changes_no_exit_code() -> None:
    for words, code in ((["targets"], 0), (["targets", "toaster"], 2), (["verify", "no"], 3)):
        with full() as lost:
            ended = run(*words, stdout=subprocess.PIPE, stderr=lost)
        assert ended.returncode == code


def test_what_the_terminal_has_no_letters_for_is_escaped() -> None:
    ended = run("verify", "é漢", capture_output=True, env={"PYTHONIOENCODING": "ascii:strict"})
    assert ended.returncode == 3
    assert r"\xe9\u6f22 does not exist" in ended.stderr


LOUD = """
import os, subprocess, sys
from torch import nn

print("printed")
os.write(1, b"written\\n")
subprocess.run(["echo", "echoed"], check=True)

class Loud(nn.Sequential):
    def forward(self, images):
        print("run")
        return super().forward(images)

def make(classes):
    sys.stdout.write("built")
    return Loud(nn.Flatten(), nn.Linear(12, classes))
"""


def test_what_the_code_of_a_network_prints_is_no_part_of_the_answer(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    weights = {"1.weight": torch.rand(2, 12), "1.bias": torch.zeros(2)}
    safetensors.torch.save_file(weights, tmp_path / "a.safetensors")
    words = ["--input-shape=3x2x2", "--classes=2", "--mean=0,0,0", "--std=1,1,1", "--json"]
    words = ["export", "a.safetensors", "-o", "a.onnx", "--arch=loud.py:make", *words]
    ended = run(*words, cwd=tmp_path, capture_output=True)
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["file"] == "a.onnx"
    for loud in ("printed", "written", "echoed", "built", "run"):
        assert loud in ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["compress"],
        ["n" * 100_000],
        [f"--{'n' * 100_000}"],
        ["compress", "x.pth", f"--{'n' * 100_000}"],
        ["compress", "x.pth", "-o"],
        ["compress", "x.pth", "-o", "b", "--seed", "\x1b[31m" * 9999],
        ["integrations", "\u202e\ud800\n\r" * 9999],
        ["targets", "\x1b]0;title\x07" * 9999],
        ["verify", "b", *"abc"],
        ["verify", "n" * 100_000],
    ],
    ids=lambda words: ascii(words)[:30],
)
def test_wrong_words_are_one_short_line(terminal: Terminal, words: list[str]) -> None:
    said = terminal(*words)
    assert said.code in (2, 3)
    line = said.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert line.isprintable()
    assert len(line) < MOST_OF_A_LINE + 10
    assert said.err.count("\n") == 1 + ("Verifying" in said.err)
    assert said.out == ""
    document = json.loads(terminal(*words, "--json").out)
    assert len(document["error"]["message"]) <= MOST_OF_A_LINE


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(), times=st.sampled_from([1, 100, 40_000]))
def test_no_message_makes_two_lines_or_a_long_one(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, text: str, times: int
) -> None:
    def fail(**_: object) -> None:
        raise UsageError(text * times)

    monkeypatch.setattr(cli, "app", fail)
    said = terminal()
    assert said.code == 2
    assert said.err.startswith("error:")
    assert said.err.endswith("\n")
    assert said.err[:-1].isprintable()
    assert len(said.err) < MOST_OF_A_LINE + 10
