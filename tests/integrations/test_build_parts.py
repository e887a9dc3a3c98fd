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
        assert "at most 1,000 was asked" in failed.stdout + failed.stderr
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


def configured(
    folder: Path, text: str, program: Program, languages: str = "NONE"
) -> subprocess.CompletedProcess[str]:
    """CMake's answer to a project that includes the module; ``MODULE`` stands for that."""
    cmake = str(program("cmake"))
    program("make")
    module = f'include("{PARTS.as_posix()}/cmake/Edgeclean.cmake")'
    (folder / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.20)\nproject(x {languages})\n"
        f"{text.replace('MODULE', module)}\n",
        encoding="utf-8",
    )
    return subprocess.run(
        [cmake, "-S", str(folder), "-B", str(folder / "out")],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("languages", "words", "message"),
    [
        ("NONE", "MODEL_FILE model.toml", "give CHECKPOINT"),
        ("NONE", "CHECKPOINT a.pth RATION 2", "unknown RATION"),
        ("NONE", "CHECKPOINT a.pth FORM cpp", "c, incbin or none"),
        ("NONE", "CHECKPOINT", "no value for CHECKPOINT"),
        ("NONE", "CHECKPOINT a.pth", "FORM c needs the language C;"),
        ("C", "CHECKPOINT a.pth FORM incbin", "FORM incbin needs the language ASM;"),
        ("C", "CHECKPOINT a.pth SYMBOL a-b", "a-b is no name in C; give SYMBOL"),
        ("C", "CHECKPOINT a.pth ALIGN 3", "ALIGN is 3; a power of two"),
    ],
)
def test_cmake_refuses_at_once_what_it_cannot_build(
    tmp_path: Path, languages: str, words: str, message: str, program: Program
) -> None:
    if languages != "NONE":
        program("cc")
    finished = configured(tmp_path, f"MODULE\nedgeclean_add_model(d {words})", program, languages)
    assert finished.returncode != 0
    assert message in " ".join(finished.stderr.split())


def test_cmake_runs_the_edgeclean_that_the_project_names_from_the_first_time_on(
    tmp_path: Path, program: Program
) -> None:
    text = "set(EDGECLEAN_COMMAND /a/b)\nMODULE\nmessage(STATUS uses=${EDGECLEAN_COMMAND})"
    for _ in range(2):
        assert "uses=/a/b\n" in configured(tmp_path, text, program).stdout
    (tmp_path / "other").mkdir()
    without = configured(tmp_path / "other", text.partition("\n")[2], program)
    assert "uses=edgeclean\n" in without.stdout


def test_cmake_takes_a_folder_from_the_build_folder(tmp_path: Path, program: Program) -> None:
    text = (
        "MODULE\nedgeclean_add_model(d CHECKPOINT a.pth FORM none OUTPUT_DIRECTORY nets/d)\n"
        "get_target_property(place d_bundle EDGECLEAN_BUNDLE)\nmessage(STATUS at=${place})"
    )
    assert f"at={tmp_path}/out/nets/d/bundle\n" in configured(tmp_path, text, program).stdout
    assert {path.name for path in tmp_path.iterdir()} == {"CMakeLists.txt", "out"}


WRITER = """#!/bin/sh
echo $1 >>ran
while [ $# -gt 0 ]; do
  case $1 in -o) out=$2;; --form) form=$2;; esac
  shift
done
mkdir -p "$out"
if [ -n "$form" ]; then
  test "$form" = c && ending=c || ending=S
  touch "$out/digits.h"
  touch "$out/digits.$ending"
else
  touch "$out/model.onnx"
fi
"""


def test_make_embeds_again_what_was_removed_or_is_wanted_in_the_other_form(
    tmp_path: Path, program: Program
) -> None:
    """With a program that writes empty files in place of edgeclean."""
    make = str(program("make"))
    program("cc")
    writer = tmp_path / "writer"
    writer.write_text(WRITER, encoding="utf-8")
    writer.chmod(0o755)
    (tmp_path / "a.pth").write_text("", encoding="utf-8")
    (tmp_path / "Makefile").write_text(
        f"include {PARTS.as_posix()}/make/edgeclean.mk\nEDGECLEAN := ./writer\n"
        "digits_CHECKPOINT := a.pth\n$(eval $(call edgeclean_model,digits))\n"
        "all: $(digits_OBJECT)\n.DEFAULT_GOAL := all\n",
        encoding="utf-8",
    )

    def ran(*words: str) -> list[str]:
        (tmp_path / "ran").write_text("", encoding="utf-8")
        subprocess.run([make, *words], cwd=tmp_path, check=True, capture_output=True)
        return (tmp_path / "ran").read_text("utf-8").split()

    source = tmp_path / "build" / "edgeclean" / "digits" / "source"
    assert ran() == ["compress", "embed"]
    assert ran() == []
    (source / "digits.c").unlink()
    assert ran() == ["embed"]
    assert ran() == []
    assert ran("digits_FORM=incbin") == ["embed"]
    assert (source / "digits.S").is_file()
    os.utime(source.parent / "bundle" / "model.onnx")
    assert ran("digits_FORM=incbin") == ["embed"]
    assert ran("digits_FORM=incbin") == []
    assert ran() == ["embed"]  # the C file is of the bundle before


@pytest.mark.parametrize(
    ("called", "words", "message"),
    [
        ("my-net", (), "my-net is no name in C"),
        ("2nd", (), "2nd is no name in C"),
        ("digits", ("EDGECLEAN_OUT=my out",), "EDGECLEAN_OUT must name one file"),
    ],
)
def test_make_refuses_names_before_any_work(
    tmp_path: Path, called: str, words: tuple[str, ...], message: str, program: Program
) -> None:
    (tmp_path / "Makefile").write_text(
        f"include {PARTS.as_posix()}/make/edgeclean.mk\n{called}_CHECKPOINT := a.pth\n"
        f"$(eval $(call edgeclean_model,{called}))\n",
        encoding="utf-8",
    )
    finished = subprocess.run(
        [str(program("make")), *words], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert finished.returncode != 0
    assert message in finished.stderr


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
