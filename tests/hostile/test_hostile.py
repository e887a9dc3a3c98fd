"""Every hostile file ends in one line and its exit code; nothing ran, nothing is left behind.

The command line is the real one, each case in a process of its own; what is asserted is the effect:
the exit code, the error's text, the folder, the memory and the processor time.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from exhaustive import exhaustive
from hostile_archives import ARCHIVES
from hostile_bundles import BUNDLES
from hostile_case import CANARY, Case
from hostile_onnx import ONNX
from hostile_packs import PACKED
from hostile_pickles import PICKLES
from hostile_safetensors import SAFETENSORS
from hostile_settings import SETTINGS

ROOT = Path(__file__).parents[2]
CASES = [*PICKLES, *ARCHIVES, *SAFETENSORS, *ONNX, *SETTINGS, *BUNDLES, *PACKED]
# A pickle, archive or graph is parsed in a process of its own, which imports for seconds. Of these
# each way to be refused is tried at every change, and each case by `make test-slow`.
FAST = {
    "pickle": (
        *("os.system", "getattr chain", "deep nest", "4 GB from one number", "NaN"),
        *("name that steers the terminal", "nothing"),
    ),
    "zip": ("TorchScript", "climbing name", "bomb", "cut short", "3 GiB of nothing"),
    "onnx": (
        *("custom domain", "graph in a number", "terabytes by ConstantOfShape", "negative shape"),
        *("infinity", "another image shape", "3 GiB of nothing"),
    ),
    # Those that are refused before the golden images run, and five that are not.
    "bundle": (
        *("million values", "1,001 files", "nothing", "hidden file", "one file more"),
        *("3 GiB of nothing", "bit in the network", "bit in the list", "no list"),
        *("pipe", "linked network", "list that climbs", "deep JSON", "key twice"),
        *("original of gigabytes", "moved bias", "NaN logits", "custom domain"),
        *("a million golden images", "4096 golden images", "loose tolerance"),
    ),
    "external data": ("folder above", "hard link", "missing"),
}
LONG = {"bundle: endless", "bundle: terabytes", "pack: a gigabyte of labels"}
MEMORY_BYTES = 2 * 2**30
SECONDS = 20  # of processor time, of the command and its parsing process together


class Said(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int


class Server:
    """Starts the command line once, and asks it to fork for each case."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("command_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def __call__(self, words: list[str], folder: Path, place: Path) -> Said:
        asked = {"words": words, "folder": str(folder), "said": str(place)}
        for name in ("temporary", "home"):
            (place / name).mkdir()
            asked[name] = str(place / name)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        said = {name: (place / name).read_text("utf-8", "replace") for name in ("out", "err")}
        return Said(
            answer["code"], said["out"], said["err"], answer["seconds"], answer["peak_bytes"]
        )

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def built(case: Case, folder: Path) -> list[str]:
    """The words of the command; torch warns of types that it will drop while they are made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return case.build(folder)


def listing(folder: Path) -> dict[str, str]:
    """Every entry below a folder, and what it is or holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            found[str(path.relative_to(folder))] = stat.filemode(status.st_mode)
        elif status.st_size > 2**26:
            found[str(path.relative_to(folder))] = str(status.st_size)  # a hole
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = digest
    return found


def is_fast(case: Case) -> bool:
    return case.name in FAST.get(case.kind, (case.name,)) and case.id not in LONG


def test_what_is_tried_at_every_change_is_there() -> None:
    named = {f"{kind}: {name}" for kind, names in FAST.items() for name in names}
    assert named | LONG <= {case.id for case in CASES}
    assert {case.kind for case in CASES} == {case.kind for case in CASES if is_fast(case)}


@pytest.mark.parametrize("case", exhaustive(CASES, is_fast), ids=lambda case: case.id)
def test_hostile_file_is_refused_and_nothing_happens(
    case: Case, server: Server, tmp_path: Path
) -> None:
    folder, place = tmp_path / "case", tmp_path / "place"
    folder.mkdir()
    place.mkdir()
    words = built(case, folder)
    before = listing(folder)
    said = server(words, folder, place)
    assert said.code == case.code, said.err
    assert re.search(case.message, said.err), said.err
    assert "Traceback" not in said.err
    error = said.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert error.isprintable()
    assert len(error) <= 1200
    assert said.out == ""
    assert listing(folder) == before, "it changed its folder"
    assert CANARY not in before
    assert list((place / "temporary").iterdir()) == []
    assert list((place / "home").iterdir()) == []
    assert said.peak_bytes < MEMORY_BYTES
    assert said.seconds < SECONDS


BAITS = [case for case in CASES if case.bait]


@pytest.mark.parametrize("case", BAITS, ids=lambda case: case.id)
def test_the_bait_is_live(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: a careless reader would have run it."""
    words = built(case, tmp_path)
    content = (tmp_path / words[1]).read_bytes()
    if content.startswith(b"PK"):
        with zipfile.ZipFile(tmp_path / words[1]) as archive:
            content = archive.read("a/data.pkl")
    monkeypatch.chdir(tmp_path)
    pickle.loads(content)  # noqa: S301 - that is the point
    assert (tmp_path / CANARY).exists()


FIRST_OF_KIND = list({case.kind: case for case in CASES}.values())


@pytest.mark.parametrize(
    "case",
    exhaustive(FIRST_OF_KIND, lambda case: case.kind in ("pickle", "config")),
    ids=lambda case: case.id,
)
def test_a_freshly_started_command_does_the_same(case: Case, tmp_path: Path) -> None:
    """One of each kind without the server: nothing depends on it."""
    words = built(case, tmp_path)
    before = listing(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", "from edgeclean.cli import main; main()", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
    )
    assert ended.returncode == case.code, ended.stderr
    assert re.search(case.message, ended.stderr)
    assert listing(tmp_path) == before


def test_the_cases_are_many_and_each_has_its_story() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
    assert all(case.story and "\n" not in case.story for case in CASES)
    refused = Counter(case.kind for case in CASES if case.code == 3)
    assert sum(refused.values()) >= 60
    assert min(refused.values()) >= 10


@pytest.mark.slow
def test_no_two_cases_are_the_same_files(tmp_path: Path) -> None:
    seen: dict[str, str] = {}
    for index, case in enumerate(CASES):
        folder = tmp_path / str(index)
        folder.mkdir()
        described = (built(case, folder), listing(folder))
        digest = hashlib.sha256(repr(described).encode()).hexdigest()
        assert seen.setdefault(digest, case.id) == case.id, "the same files as another case"
