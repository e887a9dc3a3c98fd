"""Firmware builds: the shipped CMake module and Make include, run by the real tools."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_checkpoint import QUICK, write_checkpoint

from edgeclean.config import overlay, to_toml

ROOT = Path(__file__).parents[1]
PARTS = ROOT / "exporters"
LEAST = {
    "synthesize": {"count": 12, "steps": 1, "batch_size": 12},
    "scan": {"images": 8, "steps": 1, "bank_candidates": 10},
    "purify": {"mode": "none"},
    "finetune": {"steps": 1, "procedural": 4},
}
MODEL = """
architecture = "net.py:make"
input-shape = [3, 12, 12]
classes = 4
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
"""
MAIN = """
#include <stdio.h>
#include "digits.h"
int main(void) {
    if ((size_t)digits % DIGITS_ALIGN != 0) return 3;
    return fwrite(digits, 1, sizeof digits, stdout) == DIGITS_SIZE ? 0 : 4;
}
"""
CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(firmware C ASM)
include("{parts}/cmake/Edgeclean.cmake")
edgeclean_add_model(digits CHECKPOINT "the model.safetensors" MODEL_FILE model.toml
  CONFIG quick.toml POLICY policy.toml THREADS 1 FORM {form} ALIGN 128)
add_executable(firmware main.c)
target_link_libraries(firmware PRIVATE digits)
"""
MAKE = """
include {parts}/make/edgeclean.mk
digits_CHECKPOINT := model.safetensors
digits_OPTIONS := --model model.toml --config quick.toml --policy policy.toml --threads 1
digits_FORM := {form}
$(eval $(call edgeclean_model,digits))
firmware: main.o $(digits_OBJECT)
\t$(CC) -o $@ $^
main.o: main.c $(digits_HEADER)
\t$(CC) -I$(digits_INCLUDE) -c main.c -o $@
"""


class Project:
    """A firmware project, the command that builds it, and what came out."""

    def __init__(self, folder: Path, checkpoint: str, build: list[str], out: str) -> None:
        self.folder, self.checkpoint, self._build = folder, folder / checkpoint, build
        self.firmware = folder / out / "firmware"
        below = "edgeclean/digits" if out != "." else "build/edgeclean/digits"
        self.bundle = folder / out / below / "bundle"

    def build(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._build,
            cwd=self.folder,
            env=child_environment(self.folder),
            text=True,
            check=False,
            capture_output=True,
        )

    def embedded(self) -> bytes:
        return subprocess.run([str(self.firmware)], check=True, capture_output=True).stdout

    def model(self) -> bytes:
        return (self.bundle / "model.onnx").read_bytes()


def child_environment(folder: Path) -> dict[str, str]:
    """`edgeclean` on the PATH is this source, on one thread."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    program = tools / "edgeclean"
    program.write_text(
        f'#!/bin/sh\necho "$1" >>"{folder}/ran"\nexec "{sys.executable}" -m edgeclean "$@"\n',
        encoding="utf-8",
    )
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


def write_project(folder: Path, checkpoint: str) -> None:
    write_checkpoint(folder, checkpoint)
    (folder / "main.c").write_text(MAIN, encoding="utf-8")
    (folder / "model.toml").write_text(MODEL, encoding="utf-8")
    (folder / "quick.toml").write_text(to_toml(overlay(QUICK, LEAST)), encoding="utf-8")
    (folder / "policy.toml").write_text('max-size = "1 MB"\n', encoding="utf-8")


def cmake_project(folder: Path, generator: str, form: str) -> Project:
    folder = folder / "a project"
    write_project(folder, "the model.safetensors")
    text = CMAKE.format(parts=PARTS.as_posix(), form=form)
    (folder / "CMakeLists.txt").write_text(text, encoding="utf-8")
    subprocess.run(
        ["cmake", "-S", ".", "-B", "out", "-G", generator],
        cwd=folder,
        env=child_environment(folder),
        check=True,
        capture_output=True,
    )
    return Project(folder, "the model.safetensors", ["cmake", "--build", "out"], "out")


def make_project(folder: Path, form: str) -> Project:
    write_project(folder, "model.safetensors")
    text = MAKE.format(parts=PARTS.as_posix(), form=form)
    (folder / "Makefile").write_text(text, encoding="utf-8")
    return Project(folder, "model.safetensors", ["make", "firmware"], ".")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "form"),
    [("Ninja", "c"), ("Unix Makefiles", "incbin"), ("make", "c"), ("make", "incbin")],
)
def test_a_firmware_build_holds_the_network_and_follows_its_checkpoint(
    tmp_path: Path, tool: str, form: str
) -> None:
    needed = {"Ninja": ("cmake", "ninja"), "Unix Makefiles": ("cmake", "make"), "make": ("make",)}
    for program in (*needed[tool], "cc"):
        # These are the user's own build tools, which pip cannot bring (a C compiler, make) and
        # edgeclean does not need: without them there is no build to look at, and nothing to mock.
        if shutil.which(program) is None:
            pytest.skip(f"a real firmware build needs {program}; install it to run this test")
    project = (
        make_project(tmp_path, form) if tool == "make" else cmake_project(tmp_path, tool, form)
    )
    first = project.build()
    assert first.returncode == 0, first.stdout + first.stderr
    embedded = project.embedded()
    assert embedded == project.model()
    manifest = json.loads((project.bundle / "manifest.json").read_text("utf-8"))
    assert hashlib.sha256(embedded).hexdigest() == manifest["files"]["model.onnx"]["sha256"]
    ran = project.folder / "ran"
    assert ran.read_text("utf-8").split() == ["compress", "embed"]

    again = project.build()  # nothing was touched: nothing runs
    assert again.returncode == 0
    assert ran.read_text("utf-8").split() == ["compress", "embed"]

    change_weights(project.checkpoint)
    changed = project.build()
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert ran.read_text("utf-8").split() == ["compress", "embed"] * 2
    assert project.embedded() == project.model() != embedded

    good = {path.name: path.read_bytes() for path in project.bundle.iterdir()}
    (project.folder / "policy.toml").write_text('max-size = "1 kB"\n', encoding="utf-8")
    for attempt in (3, 4):  # and again: the old bundle does not count as made
        failed = project.build()
        assert failed.returncode != 0
        assert "at most 1000 was asked" in failed.stdout + failed.stderr
        assert ran.read_text("utf-8").split().count("compress") == attempt
        assert {path.name: path.read_bytes() for path in project.bundle.iterdir()} == good

    # Only the dependency file knows of the architecture's code.
    (project.folder / "policy.toml").write_text("", encoding="utf-8")
    assert project.build().returncode == 0
    code = project.folder / "net.py"
    code.write_text(code.read_text("utf-8") + "# changed\n", encoding="utf-8")
    os.utime(code, (later(), later()))
    assert project.build().returncode == 0
    assert ran.read_text("utf-8").split().count("compress") == 6


def change_weights(checkpoint: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint)
    tensors["0.weight"] = tensors["0.weight"] * torch.tensor(1.5)
    safetensors.torch.save_file(tensors, checkpoint)


def later() -> float:
    import time

    return time.time()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("MODEL_FILE model.toml", "give CHECKPOINT"),
        ("CHECKPOINT a.pth RATION 2", "unknown RATION"),
        ("CHECKPOINT a.pth FORM cpp", "c, incbin or none"),
        ("CHECKPOINT", "no value for CHECKPOINT"),
    ],
)
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_refuses_what_it_does_not_know(tmp_path: Path, words: str, message: str) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(x NONE)\n"
        f'include("{PARTS.as_posix()}/cmake/Edgeclean.cmake")\nedgeclean_add_model(d {words})\n',
        encoding="utf-8",
    )
    finished = subprocess.run(
        ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    assert message in " ".join(finished.stderr.split())


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_passes_every_option_on(tmp_path: Path) -> None:
    """With a program that writes down its words in place of edgeclean."""
    program = tmp_path / "edgeclean"
    program.write_text(
        f'#!/bin/sh\nfor word; do echo "$word"; done >"{tmp_path}/said"\nexit 9\n', encoding="utf-8"
    )
    program.chmod(0o755)
    values = {
        "TARGET": "orin-nano",
        "JETPACK": "6",
        "RATIO": "2.5",
        "SEED": "7",
        "THREADS": "2",
        "MAX_ACCURACY_DROP": "1.5",
        "MIN_SPEEDUP": "1.2",
        "MAX_SIZE": "2 MiB",
    }
    files = {
        "MODEL_FILE": "m.toml",
        "CONFIG": "c.toml",
        "POLICY": "p.toml",
        "TARGET_FILE": "t.toml",
        "EVALUATE": "images",
    }
    for name in ("a.pth", "m.toml", "c.toml", "p.toml", "t.toml"):
        (tmp_path / name).write_text("", encoding="utf-8")
    (tmp_path / "images").mkdir()
    given = " ".join(f'{key} "{value}"' for key, value in {**values, **files}.items())
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(x NONE)\n"
        f'include("{PARTS.as_posix()}/cmake/Edgeclean.cmake")\n'
        f"edgeclean_add_model(d CHECKPOINT a.pth FORM none FAIL_ON_BACKDOOR {given}\n"
        '  OPTIONS --keep "layer 1" --measure params)\n',
        encoding="utf-8",
    )
    subprocess.run(
        [
            "cmake",
            "-S",
            str(tmp_path),
            "-B",
            str(tmp_path / "out"),
            f"-DEDGECLEAN_COMMAND={program}",
        ],
        check=True,
        capture_output=True,
    )
    built = subprocess.run(
        ["cmake", "--build", str(tmp_path / "out"), "--target", "d_bundle"],
        capture_output=True,
        check=False,
    )
    assert built.returncode != 0
    said = (tmp_path / "said").read_text("utf-8").splitlines()
    assert said[:2] == ["compress", str(tmp_path / "a.pth")]
    for key, value in {**values, **files}.items():
        option = "--" + key.lower().replace("_", "-")
        expected = str(tmp_path / value) if key in files else value
        assert said[said.index(option) + 1] == expected
    assert "--fail-on-backdoor" in said
    assert said[said.index("--keep") + 1] == "layer 1"
    known = subprocess.run(
        [sys.executable, "-m", "edgeclean", "compress", "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert all(word in known for word in said if word.startswith("--"))
