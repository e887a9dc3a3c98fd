"""A build that takes the bundle's folder, and embeds nothing, verifies what it takes.

CMake, Make, the bundle and `edgeclean verify` are the real ones. `compress`, which takes long, is
stood in for by a copy of a bundle that is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from exhaustive import exhaustive
from firmware_project import PARTS, ROOT
from programs import Program
from tiny_networks import tiny_contents

from edgeclean.bundle.bundle import write_bundle

STAND_IN = """#!/bin/sh
echo "$1" >>"{folder}/ran"
if [ "$1" != compress ]; then exec "{python}" -m edgeclean "$@"; fi
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && output=$2
    [ "$1" = --depfile ] && depfile=$2
    shift
done
mkdir -p "$output" && cp -R "{folder}/made/." "$output"
echo "$output/model.onnx: {folder}/digits.pth" >"$depfile"
"""
CMAKE = """
cmake_minimum_required(VERSION 3.20)
project(x NONE)
include("{parts}/cmake/Edgeclean.cmake")
set(EDGECLEAN_COMMAND "{folder}/edgeclean")
edgeclean_add_model(digits CHECKPOINT digits.pth FORM none)
add_custom_target(every ALL)
add_dependencies(every digits_bundle)
"""
MAKE = """
include {parts}/make/edgeclean.mk
EDGECLEAN := {folder}/edgeclean
digits_CHECKPOINT := digits.pth
$(eval $(call edgeclean_model,digits))
"""


@pytest.mark.parametrize("tool", exhaustive(["Ninja", "Unix Makefiles", "make"], ["Ninja"]))
def test_what_was_changed_in_the_folder_fails_the_build(
    tmp_path: Path, tool: str, program: Program
) -> None:
    made = write_bundle(tmp_path / "made", tiny_contents()).path
    stand_in = tmp_path / "edgeclean"
    stand_in.write_text(STAND_IN.format(folder=tmp_path, python=sys.executable), encoding="utf-8")
    stand_in.chmod(0o755)
    (tmp_path / "digits.pth").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def runs(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False
        )

    if tool == "make":
        build, folder = [str(program("make")), "digits_bundle"], tmp_path / "build"
        (tmp_path / "Makefile").write_text(MAKE.format(parts=PARTS, folder=tmp_path), "utf-8")
    else:
        program("ninja" if tool == "Ninja" else "make")
        build, folder = [str(program("cmake")), "--build", "out"], tmp_path / "out"
        text = CMAKE.format(parts=PARTS.as_posix(), folder=tmp_path)
        (tmp_path / "CMakeLists.txt").write_text(text, encoding="utf-8")
        assert runs(build[0], "-S", ".", "-B", "out", "-G", tool).returncode == 0
    for _ in range(2):
        held = runs(*build)
        assert held.returncode == 0, held.stdout + held.stderr
    ran = (tmp_path / "ran").read_text("utf-8").split()
    assert ran == ["compress", "verify", "verify"], "verified each time, and made once"

    network = folder / "edgeclean" / "digits" / "bundle" / "model.onnx"
    changed, before = bytearray((made / "model.onnx").read_bytes()), network.stat()
    changed[-1] ^= 1
    network.write_bytes(changed)
    os.utime(network, ns=(before.st_atime_ns, before.st_mtime_ns))  # no build tool sees it
    failed = runs(*build)
    assert failed.returncode != 0
    assert "error: model.onnx" in failed.stdout + failed.stderr
