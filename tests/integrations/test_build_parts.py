"""Firmware builds: the shipped CMake module and Make include, run by the real tools."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from firmware_project import PARTS, ROOT, cmake_project, make_project
from programs import Program


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "form"),
    [("Ninja", "c"), ("Unix Makefiles", "incbin"), ("make", "c"), ("make", "incbin")],
)
def test_a_firmware_build_holds_the_network_and_follows_its_checkpoint(
    tmp_path: Path, tool: str, form: str, program: Program
) -> None:
    if tool == "make":
        project = make_project(tmp_path, form, program)
    else:
        project = cmake_project(tmp_path, tool, form, program)
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
    os.utime(code)  # now: later than the bundle
    assert project.build().returncode == 0
    assert ran.read_text("utf-8").split().count("compress") == 6


def change_weights(checkpoint: Path) -> None:
    tensors = safetensors.torch.load_file(checkpoint)
    tensors["0.weight"] = tensors["0.weight"] * torch.tensor(1.5)
    safetensors.torch.save_file(tensors, checkpoint)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("MODEL_FILE model.toml", "give CHECKPOINT"),
        ("CHECKPOINT a.pth RATION 2", "unknown RATION"),
        ("CHECKPOINT a.pth FORM cpp", "c, incbin or none"),
        ("CHECKPOINT", "no value for CHECKPOINT"),
    ],
)
def test_cmake_refuses_what_it_does_not_know(
    tmp_path: Path, words: str, message: str, program: Program
) -> None:
    cmake = str(program("cmake"))
    program("make")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(x NONE)\n"
        f'include("{PARTS.as_posix()}/cmake/Edgeclean.cmake")\nedgeclean_add_model(d {words})\n',
        encoding="utf-8",
    )
    finished = subprocess.run(
        [cmake, "-S", str(tmp_path), "-B", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode != 0
    assert message in " ".join(finished.stderr.split())


def test_cmake_passes_every_option_on(tmp_path: Path, program: Program) -> None:
    """With a program that writes down its words in place of edgeclean."""
    cmake = str(program("cmake"))
    program("make")
    writer = tmp_path / "edgeclean"
    writer.write_text(
        f'#!/bin/sh\nfor word; do echo "$word"; done >"{tmp_path}/said"\nexit 9\n', encoding="utf-8"
    )
    writer.chmod(0o755)
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
            cmake,
            "-S",
            str(tmp_path),
            "-B",
            str(tmp_path / "out"),
            f"-DEDGECLEAN_COMMAND={writer}",
        ],
        check=True,
        capture_output=True,
    )
    built = subprocess.run(
        [cmake, "--build", str(tmp_path / "out"), "--target", "d_bundle"],
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
