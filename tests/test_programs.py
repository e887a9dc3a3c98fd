"""The laws of `programs`: no test has a program that it did not ask for."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import EVERYWHERE, PACKAGES, Program, installed

TESTS = Path(__file__).parent
SUPPORT = TESTS / "support"
RUNS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}


def test_what_was_not_asked_for_is_out_of_reach() -> None:
    assert [name for name in PACKAGES if shutil.which(name)] == []
    assert shutil.which("sh")
    assert not set(PACKAGES) & set(EVERYWHERE)


@pytest.mark.parametrize("name", PACKAGES)
def test_what_was_asked_for_is_found_and_nothing_beside_it(name: str, program: Program) -> None:
    place = program(name)
    assert place.is_file()
    found = {one for one in PACKAGES if shutil.which(one)}
    assert found - {name} == set()
    assert name in found


def test_a_program_that_nobody_described_is_no_reason_to_skip(program: Program) -> None:
    with pytest.raises(KeyError):
        program("no-such-program")


def test_only_one_file_looks_for_programs() -> None:
    """And nothing is started by a name that `PACKAGES` has: what was asked for says where it is."""
    for path in sorted(TESTS.rglob("*.py")):
        if path.name in ("programs.py", "test_programs.py"):
            continue
        text = path.read_text("utf-8")
        assert "shutil.which" not in text, path
        assert not re.search(r"/s?bin/(?!env\b|sh\b|mv\b)[a-z]", text), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in RUNS:
                first = node.args[0] if node.args else None
                if isinstance(first, ast.List) and isinstance(first.elts[0], ast.Constant):
                    assert first.elts[0].value in EVERYWHERE, (path, first.elts[0].value)


INNER = """
import shutil
import pytest

@pytest.fixture
def through(program):
    return program("make")

def test_asks(program):
    program("make")

def test_asks_by_a_fixture(through):
    pass

def test_asks_nobody():
    assert shutil.which("make") is None
"""


@pytest.mark.parametrize(
    ("words", "empty", "ends"),
    [
        (["--programs", "none"], False, "1 passed, 2 skipped"),
        ([], True, "1 passed, 2 skipped"),
        (["--programs", "all"], True, "1 passed, 1 error, 1 failed"),
        (["--programs", "none", "-m", "programs"], False, "2 skipped, 1 deselected"),
    ],
)
def test_a_missing_program_is_a_skip_with_its_package(
    tmp_path: Path, words: list[str], empty: bool, ends: str
) -> None:
    """In a run of its own, with the options; ``empty``: on a machine that has no program at all."""
    (tmp_path / "test_inner.py").write_text(INNER, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = programs\n", encoding="utf-8")
    run = "import programs, sys, pytest; "
    if empty:
        run += "programs.MACHINE = '/nowhere'; "
    finished = subprocess.run(
        [
            *(sys.executable, "-c", run + "sys.exit(pytest.main(sys.argv[1:], [programs]))"),
            *("-q", "-rs", "-p", "no:cacheprovider", "--strict-markers", *words, str(tmp_path)),
        ],
        env={**os.environ, "PYTHONPATH": str(SUPPORT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = finished.stdout
    last = said.strip().splitlines()[-1]
    assert set(re.findall(r"\d+ \w+", ends)) == set(re.findall(r"\d+ (?!s\b)[a-z]+", last)), said
    assert "make is not installed here; Debian's package make has it" in said


def test_the_script_names_packages_of_what_is_missing() -> None:
    script = str(SUPPORT / "programs.py")
    words = [sys.executable, script]
    nowhere = {**os.environ, "PATH": "/nowhere"}
    here = subprocess.run(words, capture_output=True, text=True, check=True, env=nowhere).stdout
    missing = set(here.split())
    assert missing <= set(PACKAGES.values())
    assert PACKAGES["cmake"] in missing  # it lies in no sbin
    assert installed("sh") is not None
