"""Names that a stranger chose, through the real build tools: no order in them is ever followed.

In place of `edgeclean` stands a program that takes its words and writes the bundle's network and,
by the real code, the dependency file; what it does with names is what `edgeclean` does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from exhaustive import exhaustive
from firmware_project import PARTS, ROOT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from programs import Program

STAND_IN = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from edgeclean.cli.dependencies import InputFiles
from edgeclean.errors import UsageError
command, *words = sys.argv[1:]
here = Path(__file__).parent
if command == "verify":
    assert (Path(words[0]) / "model.onnx").is_file() and words[1:] == ["--quiet"], words
    sys.exit()
output = Path(words[words.index("-o") + 1])
output.mkdir(parents=True, exist_ok=True)
with open(here / "ran", "a") as ran:
    ran.write(command + "\\n")
if command == "embed":
    (output / "digits.h").touch()
    (output / "digits.c").write_text("int digits;")
    sys.exit()
checkpoint = Path(words[-1] if "--" in words else words[0])
assert checkpoint.is_file() and ("--" in words or words[0][0] != "-"), words
try:
    inputs = InputFiles(Path(words[words.index("--depfile") + 1]), output)
    inputs.add(checkpoint)
    inputs.add(*(checkpoint.parent / name for name in sorted(os.listdir(here / "external"))))
    with inputs.written():
        for name in ("model.onnx", "manifest.json", "report.json", "report.html"):
            (output / name).touch()
except UsageError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
if (here / "fail").exists():
    sys.exit(6)
"""
MAKEFILE = """
include {parts}/make/edgeclean.mk
EDGECLEAN := {python} {folder}/stand-in.py
digits_CHECKPOINT := $(wildcard *.pth)
$(eval $(call edgeclean_model,digits))
.SECONDEXPANSION:
all: $(digits_BUNDLE)/model.onnx $(digits_HEADER)
.DEFAULT_GOAL := all
"""
CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(x NONE)
include({parts}/cmake/Edgeclean.cmake)
set(EDGECLEAN_COMMAND {python} {folder}/stand-in.py)
file(GLOB given "*.pth")
edgeclean_add_model(digits CHECKPOINT "${{given}}" FORM none)
add_custom_target(every ALL DEPENDS digits_bundle)
"""
# What some build tool or shell gives a meaning to, and some letters.
PIECES = [
    *"abA0;:|%*?[]\\&\"'`<>^=#$(){}!@,+~-._ \t\n\x1b\x7f",
    *(
        "$(touch PWNED)",
        "$(touch${IFS}PWNED)",
        "`touch PWNED`",
        "$(shell touch PWNED)",
        "$$",
        "${x}",
    ),
    *("';touch PWNED;'", "|touch PWNED", "\ntouch PWNED\n", "\ttouch PWNED", "&&touch PWNED"),
    *(".PHONY", ".IGNORE", ".SILENT", ".DELETE_ON_ERROR", "$<SHELL_PATH:x>", "@x@", "[[", "]=]"),
    *("--help", "--depfile", "-o", "é", "漢", "\udcff", "$(eval", "; \\\n", "::", "&:"),
]
NAMES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
SLOW = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Build:
    """A build of one checkpoint under a stranger's name."""

    def __init__(self, folder: Path, name: str, external: list[str]) -> None:
        self.folder = folder
        (folder / "external").mkdir()
        self.files = [folder / one for one in (f"{name}.pth", *external)]
        for one in self.files:
            one.write_text("x", encoding="utf-8")
        for one in external:
            (folder / "external" / one).touch()
        text = STAND_IN.format(root=str(ROOT))
        (folder / "stand-in.py").write_text(text, encoding="utf-8")

    def runs(self, *words: str) -> subprocess.CompletedProcess[str]:
        finished = subprocess.run(
            words, cwd=self.folder, capture_output=True, check=False, text=True, errors="replace"
        )
        assert not [path for path in self.folder.rglob("*") if path.name == "PWNED"]
        return finished

    @property
    def ran(self) -> int:
        """How often the network was made."""
        ran = self.folder / "ran"
        return ran.read_text().split().count("compress") if ran.exists() else 0


def make(folder: Path, name: str, external: list[str], program: Path) -> tuple[Build, list[str]]:
    build = Build(folder, name, external)
    text = MAKEFILE.format(parts=PARTS, python=sys.executable, folder=folder)
    (folder / "Makefile").write_text(text, encoding="utf-8")
    return build, [str(program), "-r"]


def cmake(
    folder: Path, name: str, external: list[str], program: Path, generator: str
) -> tuple[Build, list[str]]:
    build = Build(folder, name, external)
    text = CMAKE.format(parts=PARTS, python=sys.executable, folder=folder)
    (folder / "CMakeLists.txt").write_text(text, encoding="utf-8")
    configured = build.runs(str(program), "-S", ".", "-B", "out", "-G", generator)
    if configured.returncode:
        assert "rename it" in " ".join(configured.stderr.split()), configured.stderr
        assert "\x1b" not in configured.stderr
    return build, [str(program), "--build", "out"]


def follows_its_files_or_refuses(
    build: Build, command: list[str], refusals: tuple[str, ...]
) -> bool:
    """The law: refused, before anything is made; or made once, and again when an input changes."""
    first = build.runs(*command)
    if first.returncode:
        said = first.stdout + first.stderr  # Ninja tells on stdout what a command said on stderr
        assert any(one in said for one in refusals), said
        assert build.runs(*command).returncode  # and no later build takes it for made
        assert not list(build.folder.rglob("model.onnx"))
        assert "\x1b" not in said.replace("\x1b[31m", "").replace("\x1b[0m", "")
        return False
    assert build.ran == 1
    made = next(build.folder.rglob("model.onnx")).stat().st_mtime_ns
    again = build.runs(*command)
    assert again.returncode == 0, again.stderr
    assert build.ran == 1, "made again, and nothing had changed"
    for times, path in enumerate(build.files, start=2):
        while time.time_ns() <= made + 10**7:
            time.sleep(0.01)
        os.utime(path)
        assert build.runs(*command).returncode == 0
        assert build.ran == times, f"not made again after {path.name!r} changed"
        made = next(build.folder.rglob("model.onnx")).stat().st_mtime_ns
    assert build.runs(*command).returncode == 0
    assert build.ran == 1 + len(build.files)
    (build.folder / "fail").touch()
    os.utime(build.files[0], (time.time() + 9, time.time() + 9))
    for _ in range(2):
        assert build.runs(*command).returncode, "a gate that fails stops every build"
    return True


def usable(name: str) -> str:
    """A name that a file can have."""
    return "dots" if name in (".", "..") else name


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[int]:
    """Numbers for folders of examples."""
    return iter(range(10**6))


REFUSALS = ("rename", "names one file", "must name one file")


@SLOW
@given(name=NAMES, external=NAMES)
@example(name="net$(touch${IFS}PWNED)", external="w")
@example(name="\n", external="a")
@example(name="a", external=".IGNORE")
@example(name="a", external="w ")
@example(name="a", external="w;x.bin")
@example(name="-o", external="--help")
@example(name="a", external="$(shell touch PWNED)")
def test_make(
    tmp_path: Path, fresh: Iterator[int], program: Program, name: str, external: str
) -> None:
    folder = tmp_path / str(next(fresh))
    folder.mkdir()
    build, command = make(folder, usable(name), [usable(external)], program("make"))
    follows_its_files_or_refuses(build, command, REFUSALS)


@pytest.mark.parametrize("generator", exhaustive(["Ninja", "Unix Makefiles"], ["Ninja"]))
@settings(SLOW, max_examples=3)
@given(name=NAMES, external=NAMES)
@example(name="a", external="w#1")
@example(name="a", external="w$1")
@example(name="a;b", external="w")
@example(name="a b", external="a (1) {b} @c@!")
def test_cmake(
    tmp_path: Path,
    fresh: Iterator[int],
    program: Program,
    generator: str,
    name: str,
    external: str,
) -> None:
    folder = tmp_path / str(next(fresh))
    folder.mkdir()
    program("ninja" if generator == "Ninja" else "make")
    names = usable(name), [usable(external)]
    build, command = cmake(folder, *names, program("cmake"), generator)
    if (folder / "out" / "CMakeCache.txt").exists() and (
        list((folder / "out").glob("build.ninja")) or list((folder / "out").glob("Makefile"))
    ):
        follows_its_files_or_refuses(build, command, REFUSALS)


@pytest.mark.parametrize("name", ["a+,_.(b){c}@!~-", "-é漢"])
def test_what_is_allowed_works(tmp_path: Path, program: Program, name: str) -> None:
    """The control: not everything is refused."""
    build, command = make(tmp_path, name, [f"w {name}"], program("make"))
    assert follows_its_files_or_refuses(build, command, ())
