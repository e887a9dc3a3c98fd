"""Ctrl-C, as a terminal sends it: one line that says how to go on, and nothing left lying about."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextvars import Context
from pathlib import Path

import pytest
from exhaustive import exhaustive
from small_checkpoint import OPTIONS, QUICK

from edgeclean.cli.command import interrupted_line
from edgeclean.config import overlay, to_toml

LONG = {"scan": {"steps": 10**6}}


def interrupted(source: Path, until: str, *words: object) -> subprocess.CompletedProcess[str]:
    """The command in a process group of its own, which gets SIGINT once ``until`` was said."""
    config = source.parent / "long.toml"
    config.write_text(to_toml(overlay(QUICK, LONG)), encoding="utf-8")
    command = [sys.executable, "-m", "edgeclean", *map(str, words), str(source), *OPTIONS]
    run = subprocess.Popen(
        [*command, "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=source.parent,
        start_new_session=True,
        env={**os.environ, "XDG_CACHE_HOME": str(source.parent / "cache")},
    )
    with run:
        assert run.stdout is not None
        assert run.stderr is not None
        said = ""
        for line in run.stderr:
            said += line
            if until in line:
                break
        os.killpg(run.pid, signal.SIGINT)
        said += run.stderr.read()
        out = run.stdout.read()
    return subprocess.CompletedProcess(command, run.returncode, out, said)


@pytest.mark.parametrize("kept", exhaustive([True, False], [True]))
def test_an_interrupted_run_says_how_to_go_on_and_leaves_no_trace(
    source: Path, tmp_path: Path, kept: bool
) -> None:
    output = tmp_path / "build"
    words = ["compress", "--json", "-o", output, *([] if kept else ["--no-cache"])]
    run = interrupted(source, "Scanning: masked patch", *words)
    assert run.returncode == 130
    assert "Traceback" not in run.stderr
    before, last = run.stderr.splitlines()[:-1], run.stderr.splitlines()[-1]
    assert last.startswith("error: interrupted while scanning; ")
    assert not any("interrupted" in line for line in before)
    assert ("finished stages are kept" in last, "nothing was kept" in last) == (kept, not kept)
    error = json.loads(run.stdout)["error"]
    assert error["message"].endswith(last.removeprefix("error: "))
    assert (error["exit_code"], error["signal"]) == (130, "SIGINT")
    assert list(tmp_path.iterdir()) == []  # no bundle, no lock, nothing partial


def test_a_scan_that_is_interrupted_makes_no_folder(source: Path, tmp_path: Path) -> None:
    run = interrupted(source, "Scanning: masked patch", "scan", "-o", tmp_path / "found")
    assert (run.returncode, run.stdout) == (130, "")
    assert run.stderr.splitlines()[-1].startswith("error: interrupted while scanning; run the same")
    assert list(tmp_path.iterdir()) == []


def test_before_anything_was_told_the_line_is_whole() -> None:
    line = Context().run(interrupted_line)  # as in a program that has said nothing yet
    assert line == "interrupted; run the same command again to start over"
