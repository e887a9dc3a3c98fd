"""A fleet in processes of this machine: the bytes of `compress`, each stage once, nothing lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import Terminal
from fleet_folder import CATALOGUE, fill
from kept_stages import BOUND
from small_checkpoint import OPTIONS

from edgeclean.files.schema import validator
from edgeclean.fleet import local_engine
from edgeclean.fleet.catalogue import read_catalogue
from edgeclean.fleet.graph import graph, job_of
from edgeclean.fleet.inputs import look_at
from edgeclean.fleet.plan import plan_networks
from edgeclean.fleet.run import DOCUMENT, PAGE

TWO = f"""{CATALOGUE}
[[networks]]
checkpoint = "b.safetensors"
sha256 = "{"0" * 64}"
"""
BAD = '[[networks]]\ncheckpoint = "bad.pth"\n'
GROWN = TWO.replace("ratio = 2.0", 'ratio = 2.0\n\n[[targets]]\n\n[[targets]]\ntarget = "jetson"')


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(monkeypatch, capsys)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The networks; the tests use ``out`` and ``cache`` in it one after another."""
    return fill(tmp_path_factory.mktemp("fleet"))


def fleet(terminal: Terminal, place: Path, text: str, *more: object) -> tuple[Any, str]:
    """The document and stderr of a run that ends with exit code 3, for its networks are bad."""
    (place / "catalogue.toml").write_text(text, encoding="utf-8")
    words = ["fleet", place / "catalogue.toml", "-o", place / "out", "--cache", place / "cache"]
    said = terminal(*words, "--jobs", "1", *more)
    assert said.code == 3, said.err
    document = json.loads((place / "out" / DOCUMENT).read_text("utf-8"))
    validator("fleet").validate(document)
    return document, said.err


def states(document: Any) -> dict[str, str]:
    return {one["name"]: one["state"] for one in document["cells"]}


def test_a_cell_has_the_bytes_of_compress_and_others_fail_alone(
    terminal: Terminal, place: Path
) -> None:
    document, err = fleet(terminal, place, TWO + BAD)
    assert states(document) == {
        "a/cpu/ratio-2": "done",
        "b/cpu/ratio-2": "failed",
        "bad/cpu/ratio-2": "failed",
    }
    done, pinned, bad = document["cells"]
    assert (pinned["error"]["exit_code"], bad["error"]["exit_code"]) == (3, 3)
    assert "pins" in pinned["error"]["message"]
    assert "error: 2 of 3 cells failed" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert set(done["taken_up"]) >= {"synthesize", "scan", "purify"}  # of the network's own task
    network = document["networks"][0]
    assert (network["state"], network["taken_up"]) == ("done", [])
    assert network["verdict"] in ("suspected", "not found")
    made = place / "out" / done["bundle"]

    alone = ["compress", place / "a.safetensors", *OPTIONS, "--config", place / "quick.toml"]
    alone[2] = f"--arch={place}/net.py:make"
    said = terminal(*alone, "--ratio", "2", "--threads", "1", "-o", place / "alone", "--no-cache")
    assert said.code == 0, said.err
    for name in BOUND:
        assert (made / name).read_bytes() == (place / "alone" / name).read_bytes(), name
    assert PAGE in {one.name for one in (place / "out").iterdir()}
    assert {one.name for one in (place / "out").iterdir()} == {
        *(DOCUMENT, PAGE, "bundles", "journal.jsonl"),
    }


def test_the_same_catalogue_does_nothing_again_also_where_a_run_was_killed(
    terminal: Terminal, place: Path
) -> None:
    fleet(terminal, place, TWO)
    bundle = place / "out" / "bundles" / "a" / "cpu" / "ratio-2"
    before = bundle.stat()
    journal = place / "out" / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"part": "cells", "row": {"name": "a/cpu/ra')  # killed within
    document, _ = fleet(terminal, place, TWO)
    assert document["counts"] == {"cells": 2, "done": 1, "failed": 1, "waiting": 0, "kept": 1}
    assert bundle.stat() == before
    assert states(document)["a/cpu/ratio-2"] == "done"


@pytest.mark.slow
def test_a_grown_catalogue_does_only_what_is_new(terminal: Terminal, place: Path) -> None:
    fleet(terminal, place, TWO)
    document, _ = fleet(terminal, place, GROWN)
    assert document["counts"]["kept"] == 1
    (new,) = [one for one in document["cells"] if one["name"] == "a/jetson/ratio-2"]
    assert set(new["taken_up"]) >= {"synthesize", "scan", "purify"}
    assert set(document["networks"][0]["taken_up"]) >= {"synthesize", "scan", "purify"}


KILLER = """
import os, pathlib, signal
from net import make as made

def make(classes=4):
    mark = pathlib.Path(__file__).with_name("killed")
    if len(mark.read_text() if mark.exists() else "") < TIMES:
        with mark.open("a") as stream:
            stream.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return made(classes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 9])
def test_a_worker_that_is_killed_loses_its_own_job_alone(
    terminal: Terminal, place: Path, tmp_path: Path, times: int
) -> None:
    for name in ("a.safetensors", "net.py", "net.toml", "quick.toml", "bad.pth", "b.safetensors"):
        shutil.copy(place / name, tmp_path / name)
    (tmp_path / "killer.py").write_text(KILLER.replace("TIMES", str(times)), encoding="utf-8")
    killer = (tmp_path / "net.toml").read_text("utf-8").replace("net.py", "killer.py")
    (tmp_path / "killer.toml").write_text(killer, encoding="utf-8")
    more = '[[networks]]\nname = "killer"\ncheckpoint = "a.safetensors"\nmodel = "killer.toml"\n'
    document, _ = fleet(terminal, tmp_path, TWO + more, "--jobs", "2")
    assert states(document)["a/cpu/ratio-2"] == "done"
    (cell,) = [one for one in document["cells"] if one["network"] == "killer"]
    if times == 1:
        assert cell["state"] == "done"
    else:
        assert "3 times" in cell["error"]["message"]
        assert cell["error"]["exit_code"] == 1
    assert len((tmp_path / "killed").read_text()) == min(times, 3)


def gone(group: int) -> bool:
    """Whether nothing of a process group is left; multiprocessing's tracker takes a moment."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "error: interrupted while making cells; finished"),
        (signal.SIGTERM, 143, "error: stopped by SIGTERM; "),
    ],
)
def test_a_signal_is_one_line_and_leaves_no_process(
    place: Path, tmp_path: Path, number: signal.Signals, code: int, line: str
) -> None:
    long = (place / "quick.toml").read_text("utf-8").replace("[scan]\n", "[scan]\n", 1)
    text = long.replace("images = 16\nsteps = 3", "images = 16\nsteps = 1000000")
    assert text != long
    (place / "long.toml").write_text(text, encoding="utf-8")
    catalogue = place / "long-catalogue.toml"
    catalogue.write_text(TWO.replace("quick.toml", "long.toml"), encoding="utf-8")
    command = [sys.executable, "-m", "edgeclean", "fleet", str(catalogue), "--jobs", "1"]
    run = subprocess.Popen(
        [*command, "-o", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with run:
        assert run.stderr is not None
        for told in run.stderr:
            if "1/2" in told:
                break
        os.kill(run.pid, number)
        said = run.stderr.read()
    assert run.returncode == code
    assert said.splitlines()[-1].startswith(line)
    assert "Traceback" not in said
    assert "leaked" not in said
    assert gone(run.pid)
    document = json.loads((tmp_path / "out" / DOCUMENT).read_text("utf-8"))
    assert states(document)["a/cpu/ratio-2"] == "waiting"
    assert not list((tmp_path / "out").rglob(".edgeclean-*"))


def test_a_worker_that_has_not_even_started_is_ended_too(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_engine, "GRACE_SECONDS", 0.01)  # less than its imports take
    (place / "catalogue.toml").write_text(TWO, encoding="utf-8")
    (network, _) = plan_networks(read_catalogue(place / "catalogue.toml"))
    (files, cells) = look_at(network, {}), {network.name: network.cells}
    first = next(graph([network], {network.name: files}, cells))
    job = job_of(first, files, cache=tmp_path / "cache", bundles=tmp_path / "bundles")
    engine = local_engine.LocalEngine(1)
    engine.submit("first", job)
    engine.close()
    assert multiprocessing.active_children() == []
    assert list(tmp_path.iterdir()) == []  # it did nothing


def test_a_users_folder_is_refused_and_stays(terminal: Terminal, place: Path) -> None:
    mine = place / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine", encoding="utf-8")
    (place / "catalogue.toml").write_text(TWO, encoding="utf-8")
    for output in (mine, place):
        said = terminal("fleet", place / "catalogue.toml", "-o", output, "--cache", place / "cache")
        assert said.code == 2, said.err
        assert len(said.err.splitlines()) == 1
    assert [one.name for one in mine.iterdir()] == ["notes.txt"]
