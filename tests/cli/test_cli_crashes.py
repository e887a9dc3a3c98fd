"""A crash of native code, a kill and Ctrl-C: one line, a document, and nothing left behind."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from exhaustive import exhaustive

from edgeclean.cli import supervisor
from edgeclean.files.atomic import clear_up_after, staging_name

CODE = """
import atexit, ctypes, math, os, pathlib, signal, time
from torch import nn

class Crashing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 2)

    def forward(self, images):
        pathlib.Path(os.environ["BUSY"]).write_text(str(os.getpid()))
        how = os.environ["HOW"]
        held = pathlib.Path(os.environ["STAGING"])
        if (held / "lock").exists() and how != "wait":
            (held / "new").mkdir()  # as a run that was about to write
        if how == "segfault":
            ctypes.string_at(0)
        elif how == "wait":
            time.sleep(60)
        elif how == "exit":
            os._exit(0)
        elif how == "refused":
            atexit.register(time.sleep, 3)  # told, and not yet ended
            return self.layer(images.flatten(1)) * math.inf
        else:
            os.kill(os.getpid(), getattr(signal, how))
        return self.layer(images.flatten(1))

def make(classes):
    return Crashing()
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A working folder, and one for temporary files, in which nothing may be left."""
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "tmp").mkdir()
    (work / "crashing.py").write_text(CODE)
    weights = {"layer.weight": torch.zeros(2, 12), "layer.bias": torch.zeros(2)}
    safetensors.torch.save_file(weights, work / "a.safetensors")
    yield work
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(one.name for one in work.iterdir()) == ["a.safetensors", "crashing.py"]


def started(place: Path, how: str, command: str = "compress") -> subprocess.Popen[str]:
    words = ["a.safetensors", "--arch=crashing.py:make", "--input-shape=3x2x2", "--classes=2"]
    words += ["--mean=0,0,0", "--std=1,1,1", "--json"]
    words += ["-o", "out"] if command in ("compress", "export", "scan") else []
    words += ["--no-cache"] if command == "compress" else []
    environment = {
        **os.environ,
        "HOW": how,
        "BUSY": str(place.parent / "busy"),
        "STAGING": staging_name("out"),
        "TMPDIR": str(place.parent / "tmp"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(supervisor.__file__).parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "edgeclean", command, *words],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test may be run behind an & of a script, where Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=120)
    lines = [line for line in err.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, err
    return process.returncode, json.loads(out)["error"], lines[0]


def busy_child(place: Path) -> int:
    said = place.parent / "busy"
    for _ in range(1200):
        if said.exists() and said.read_text():
            return int(said.read_text())
        time.sleep(0.1)
    raise AssertionError("the command did not come to the network")


CRASHES = [
    ("compress", "segfault", "error: native code crashed (SIGSEGV)"),
    ("scan", "SIGKILL", "error: the process was killed (SIGKILL), most often because"),
    ("inspect", "exit", "error: the process ended itself with code 0 before its work was done"),
    ("inspect", "SIGABRT", "error: native code crashed (SIGABRT)"),
    ("compress", "SIGFPE", "error: native code crashed (SIGFPE)"),
    ("export", "SIGILL", "error: native code crashed (SIGILL)"),
]


@pytest.mark.parametrize(("command", "how", "words"), exhaustive(CRASHES, CRASHES[:3]))
def test_a_crash_is_one_line_and_leaves_nothing(
    place: Path, command: str, how: str, words: str
) -> None:
    code, error, line = ended(started(place, how, command))
    assert code == error["exit_code"] == 1
    assert line.startswith(words)
    assert line == f"error: {error['message']}"
    assert error["kind"] == "EndedBySignalError"


STOPS = [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGINT, False)]
STOPS += [(signal.SIGTERM, True), (signal.SIGQUIT, True)]


@pytest.mark.parametrize(("number", "to_all"), exhaustive(STOPS, STOPS[:1]))
def test_who_asks_it_to_stop_is_heard(place: Path, number: signal.Signals, to_all: bool) -> None:
    process = started(place, "wait")
    child = busy_child(place)
    assert child != process.pid
    (os.killpg if to_all else os.kill)(process.pid, number)
    code, error, line = ended(process)
    assert code == error["exit_code"] == 128 + number
    word = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert line.startswith(f"error: {word}")
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_a_killed_command_takes_its_child_along_and_the_next_one_clears_up(place: Path) -> None:
    process = started(place, "wait")
    busy_child(place)
    process.kill()
    process.communicate(timeout=30)  # the pipes end when both have, and the child would sleep on
    assert (place / staging_name("out") / "lock").exists()
    for one in (place.parent / "tmp").iterdir():  # what a killed command leaves, as it always did
        assert one.name.startswith("edgeclean-")
        shutil.rmtree(one)
    (place.parent / "busy").unlink()
    ended(started(place, "segfault"))


@pytest.mark.parametrize(
    "number", exhaustive([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], [signal.SIGTERM])
)
def test_who_stops_it_when_its_error_is_told_hears_no_second_reason(
    place: Path, number: signal.Signals
) -> None:
    process = started(place, "refused")
    assert process.stderr is not None
    told = ""
    while not told.startswith("error: "):
        told = process.stderr.readline()
        assert told
    process.send_signal(number)
    out, rest = process.communicate(timeout=120)
    assert rest == ""
    error = json.loads(out)["error"]
    assert process.returncode == error["exit_code"] == 3
    assert told == f"error: {error['message']}\n"


def test_what_another_run_holds_is_left_to_it(place: Path) -> None:
    staging = place / staging_name("out")
    (staging / "new").mkdir(parents=True)
    with (staging / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        clear_up_after(place / "out")
        assert (staging / "lock").exists()
        assert (staging / "new").exists()
    clear_up_after(place / "out")


def test_only_long_commands_of_a_fresh_process_are_split() -> None:
    def asked(*words: str, first: str = "") -> bool:
        code = f"import sys; {first}\nfrom edgeclean.cli import supervisor\n"
        code += "print(supervisor.is_split(sys.argv[1:]))"
        environment = {**os.environ, "PYTHONPATH": str(Path(supervisor.__file__).parents[2])}
        said = subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        return said.stdout == "True\n"

    assert asked("compress", "x")
    assert not asked("compress", "--help")
    assert not asked("doctor")
    assert not asked()
    assert not asked("scan", "x", first="sys.modules['torch'] = sys")
    assert not asked(
        "scan",
        first="import threading, time; threading.Thread(target=time.sleep, args=[1]).start()",
    )
    assert not supervisor.is_split(["compress", "x"])  # here: torch is loaded
