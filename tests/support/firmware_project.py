"""Firmware projects for tests: CMake's and Make's, with `edgeclean` of this source on the PATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from programs import Program
from small_checkpoint import QUICK, write_checkpoint

from edgeclean.config import overlay, to_toml

ROOT = Path(__file__).parents[2]
PARTS = ROOT / "edgeclean" / "integrations"
LEAST = {
    "synthesize": {"count": 12, "steps": 1, "batch_size": 12},
    "scan": {"images": 8, "steps": 1, "bank_candidates": 10},
    "purify": {"mode": "none"},
    "finetune": {"steps": 1},
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


def cmake_project(folder: Path, generator: str, form: str, program: Program) -> Project:
    cmake = str(program("cmake"))
    for name in ("ninja" if generator == "Ninja" else "make", "cc"):
        program(name)
    folder = folder / "a project"
    write_project(folder, "the model.safetensors")
    text = CMAKE.format(parts=PARTS.as_posix(), form=form)
    (folder / "CMakeLists.txt").write_text(text, encoding="utf-8")
    subprocess.run(
        [cmake, "-S", ".", "-B", "out", "-G", generator],
        cwd=folder,
        env=child_environment(folder),
        check=True,
        capture_output=True,
    )
    return Project(folder, "the model.safetensors", [cmake, "--build", "out"], "out")


def make_project(folder: Path, form: str, program: Program) -> Project:
    make = str(program("make"))
    program("cc")
    write_project(folder, "model.safetensors")
    text = MAKE.format(parts=PARTS.as_posix(), form=form)
    (folder / "Makefile").write_text(text, encoding="utf-8")
    return Project(folder, "model.safetensors", [make, "firmware"], ".")
