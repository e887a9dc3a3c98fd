from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program

from edgeclean.cli.dependencies import InputFiles, code_file
from edgeclean.errors import UsageError
from edgeclean.files.depfile import depfile, is_depfile

ODD = [
    "two words.pth",
    "a@b,c+d~e!.toml",
    "(touch pwned)x",
    "{x} y",
    "ü (1).png",
    "-a",
]
AT = 1_700_000_000


def make_says(make: Path, folder: Path) -> bool:
    """Whether Make finds something to do."""
    rules = 'include out.d\nout/model.onnx:\n\t@touch "$@"\n'
    (folder / "Makefile").write_text(rules, encoding="utf-8")
    finished = subprocess.run([str(make), "-q", "out/model.onnx"], cwd=folder, check=False)
    assert finished.returncode in (0, 1)
    return finished.returncode == 1


def ninja_says(ninja: Path, folder: Path) -> bool:
    """Whether Ninja finds something to do; it reads the file after a build that wrote it."""
    finished = subprocess.run(
        [str(ninja), "-n", "-d", "explain"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return "no work to do" not in finished.stdout


def prepare(folder: Path, names: list[str]) -> list[Path]:
    """The files, older than the output, and the dependency file."""
    paths = [Path("in") / name for name in names]
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    for path in paths:
        (folder / path).write_text("x", encoding="utf-8")
        os.utime(folder / path, (AT, AT))
    (folder / "out.d").write_bytes(depfile(Path("out/model.onnx"), paths))
    return paths


def touch_output(folder: Path) -> None:
    (folder / "out/model.onnx").write_text("y", encoding="utf-8")
    os.utime(folder / "out/model.onnx", (AT + 10, AT + 10))


def test_make_reads_every_name_back(tmp_path: Path, program: Program) -> None:
    make = program("make")
    paths = prepare(tmp_path, ODD)
    touch_output(tmp_path)
    assert not make_says(make, tmp_path)
    for path in paths:
        os.utime(tmp_path / path, (AT + 20, AT + 20))
        assert make_says(make, tmp_path), path
        os.utime(tmp_path / path, (AT, AT))
    assert not make_says(make, tmp_path)
    (tmp_path / paths[0]).unlink()  # a removed one is a reason to build, not to stop
    assert make_says(make, tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_ninja_reads_every_name_back(tmp_path: Path, program: Program) -> None:
    ninja = program("ninja")
    paths = prepare(tmp_path, ODD)
    shutil.copy(tmp_path / "out.d", tmp_path / "made.d")
    (tmp_path / "build.ninja").write_text(
        "rule r\n  command = cp made.d out.d && touch out/model.onnx\n  depfile = out.d\n"
        "build out/model.onnx: r\n",
        encoding="utf-8",
    )
    assert ninja_says(ninja, tmp_path)
    subprocess.run([str(ninja)], cwd=tmp_path, check=True, capture_output=True)
    touch_output(tmp_path)
    assert not ninja_says(ninja, tmp_path)
    for path in paths:
        os.utime(tmp_path / path, (AT + 20, AT + 20))
        assert ninja_says(ninja, tmp_path), path
        os.utime(tmp_path / path, (AT, AT))
    assert not ninja_says(ninja, tmp_path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("character", [*"\n\r\t\0;|=:%*?[]\\&<>\"'`^#$", "\x7f"])
def test_what_the_tools_read_differently_is_refused(character: str) -> None:
    with pytest.raises(UsageError, match="rename it"):
        depfile(Path("out/model.onnx"), [Path(f"a{character}b")])
    with pytest.raises(UsageError, match="rename it"):
        depfile(Path(f"a{character}b/model.onnx"), [])


@pytest.mark.parametrize("name", ["~root/x", "lib(member)"])
def test_what_make_gives_a_meaning_by_place_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="rename it"):
        depfile(Path("m"), [Path(name)])


@given(st.lists(st.text(min_size=1, max_size=12), max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_name_is_written_whole_or_refused(names: list[str]) -> None:
    try:
        written = depfile(Path("m"), [Path(f"i/{name}") for name in names]).decode()
    except UsageError:
        return
    first = re.split(" +", written.replace("\\\n", "").replace("\\ ", "\0").split("\n")[0])
    expected = list(dict.fromkeys(str(Path(f"i/{name}")) for name in names))
    assert [word.replace("\0", " ") for word in first[1:] if word] == expected


def test_each_input_once_and_in_order() -> None:
    text = depfile(Path("b/model.onnx"), [Path("z"), Path("a"), Path("z")]).decode()
    assert text == "b/model.onnx: \\\n  z \\\n  a\nz:\na:\n"


def test_a_depfile_never_lies_in_the_bundle(tmp_path: Path) -> None:
    for place in ("b/x.d", "b", "b/../b/x.d"):
        with pytest.raises(UsageError, match="put it beside"):
            InputFiles(tmp_path / place, tmp_path / "b")


def test_inputs_are_refused_before_the_work_and_written_after_it(tmp_path: Path) -> None:
    inputs = InputFiles(tmp_path / "deep" / "x.d", Path("b"))
    inputs.add(Path("model.pth"), None, Path("model.toml"))
    with pytest.raises(UsageError, match="rename it"):
        inputs.add(Path("a;b"))
    assert not (tmp_path / "deep").exists()
    inputs = InputFiles(tmp_path / "deep" / "x.d", Path("b"))
    inputs.add(Path("model.pth"))
    with inputs.written():
        pass
    written = (tmp_path / "deep" / "x.d").read_text("utf-8")
    assert written.startswith("b/model.onnx: \\\n  model.pth")
    with pytest.raises(KeyError), inputs.written():
        raise KeyError  # the bundle could not be put in place
    assert (tmp_path / "deep" / "x.d").read_text("utf-8") == written
    silent = InputFiles(None, Path("b"))
    silent.add(Path("a;b"))  # nobody asked for a file that it could not stand in
    with silent.written():
        pass


@pytest.mark.parametrize("name", [".IGNORE", "./.PHONY", " x", "in/x ", ".x"])
def test_orders_and_spaces_at_an_end_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="rename it"):
        depfile(Path("m"), [Path(name)])


def test_no_name_gives_make_an_order(program: Program, tmp_path: Path) -> None:
    """The names with a meaning that this Make's manual lists, as files beside the Makefile."""
    make = program("make")
    for word in ("PHONY", "SUFFIXES", "DEFAULT", "PRECIOUS", "IGNORE", "SILENT", "POSIX"):
        for place in (Path(f".{word}"), Path("in") / f".{word}"):
            try:
                (tmp_path / "out.d").write_bytes(depfile(Path("model.onnx"), [place]))
            except UsageError:
                continue
            rules = "all:\n\t@false\n\t@echo went on\ninclude out.d\n"
            (tmp_path / "Makefile").write_text(rules, encoding="utf-8")
            made = subprocess.run(
                [make, "-r"], cwd=tmp_path, check=False, capture_output=True, text=True
            )
            assert made.returncode == 2
            assert "went on" not in made.stdout
            assert "@false" not in made.stdout


@given(st.lists(st.text(min_size=1, max_size=12), max_size=4), st.binary(max_size=20))
@settings(max_examples=200, deadline=None)
def test_what_was_written_is_known_again_and_nothing_else(names: list[str], more: bytes) -> None:
    try:
        written = depfile(Path("m/model.onnx"), [Path(f"i/{name}") for name in names])
    except UsageError:
        return
    assert is_depfile(written)
    assert is_depfile(written + more) == (more == b"")
    assert not is_depfile(written.replace(b"model.onnx:", b"mine:"))


def test_the_users_architecture_is_an_input() -> None:
    assert code_file("net.py:make", Path("nets")) == Path("nets/net.py")
    assert code_file("net.py:make", None) == Path("net.py")
    assert code_file("resnet20", None) is None
    assert code_file("nowhere.at.all:make", None) is None
    found = code_file("edgeclean.files.depfile:depfile", None)
    assert found is not None
    assert found.name == "depfile.py"
