from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundle_files import make_manifest_fit, put_bundle
from programs import Program
from tiny_networks import tiny_contents

from edgeclean.bundle import embed
from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.embed import EmbedSettings, embed_bundle
from edgeclean.bundle.manifest import canonical_json
from edgeclean.bundle.verify import VerifiedBundle, open_bundle
from edgeclean.config import settings_from
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files import writing
from edgeclean.files.writing import in_place

STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
PROGRAM = """
#include <stdint.h>
#include <stdio.h>
#include "net.h"
int main(void) {
    static const float mean[NET_CHANNELS] = NET_MEAN, std[NET_CHANNELS] = NET_STD;
    if ((uintptr_t)net % NET_ALIGN != 0 || mean[0] != 0.5f || std[2] != 0.2f) return 3;
    if (sizeof net != NET_SIZE || NET_CLASSES != 5 || NET_HEIGHT * NET_WIDTH != 64) return 4;
    return fwrite(net, 1, NET_SIZE, stdout) == NET_SIZE ? 0 : 5;
}
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("b") / "bundle", tiny_contents()).path


def with_files(folder: Path, **files: bytes) -> Path:
    """A bundle with further files, whose names have / for __."""
    own = {name.replace("__", "/", 1): content for name, content in files.items()}
    return write_bundle(folder, replace(tiny_contents(), reproducible_files=own)).path


def write_files(folder: Path, files: Mapping[str, bytes], *, last: str) -> None:
    paths = {folder / name: content for name, content in files.items()}
    with in_place(paths, ours=lambda _: True, last=folder / last):
        pass


class Compiler:
    """The machine's C compiler, strict, on `PROGRAM` and a source beside it."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._cc, self._folder = program("cc"), folder

    def __call__(self, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
        (self._folder / "main.c").write_text(PROGRAM, encoding="utf-8")
        return subprocess.run(
            [str(self._cc), *flags, *STRICT, "-I.", "main.c", source, "-o", "main"],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def compiler(program: Program, tmp_path: Path) -> Compiler:
    return Compiler(program, tmp_path)


@pytest.mark.parametrize("align", [1, 64, 4096])
@pytest.mark.parametrize(
    ("form", "source", "standard"),
    [("c", "net.c", "-std=c99"), ("c", "net.c", "-std=c11"), ("incbin", "net.S", "-std=c11")],
)
def test_a_program_holds_the_very_bytes(
    bundle: Path,
    tmp_path: Path,
    compiler: Compiler,
    form: Any,
    source: str,
    standard: str,
    align: int,
) -> None:
    embedded = embed_bundle(bundle, EmbedSettings(symbol="net", form=form, align=align))
    write_files(tmp_path, embedded.files, last="net.h")
    compiled = compiler(source, standard)
    assert compiled.returncode == 0, compiled.stderr
    finished = subprocess.run([str(tmp_path / "main")], capture_output=True, check=True)
    assert finished.stdout == (bundle / "model.onnx").read_bytes()
    assert hashlib.sha256(finished.stdout).hexdigest() == embedded.model_sha256
    assert f'NET_SHA256 "{embedded.model_sha256}"' in embedded.files["net.h"].decode()


@pytest.mark.parametrize(("form", "source"), [("c", "net.c"), ("incbin", "net.S")])
@pytest.mark.parametrize("ending", [".tflite", ".c", "", ".S"])
def test_any_file_of_the_bundle_can_be_held(
    tmp_path: Path, compiler: Compiler, form: Any, source: str, ending: str
) -> None:
    content = bytes(range(256)) * 3 + b'"; // */ \n'
    held = with_files(tmp_path / "mit Ümläuten", **{f"own__net{ending}": content})
    settings = EmbedSettings(symbol="net", form=form, align=16, file=f"own/net{ending}")
    embedded = embed_bundle(held, settings)
    assert tuple(embedded.files) == settings.file_names
    assert len(set(settings.file_names)) == len(settings.file_names)
    write_files(tmp_path, embedded.files, last="net.h")
    compiled = compiler(source)
    assert compiled.returncode == 0, compiled.stderr
    finished = subprocess.run([str(tmp_path / "main")], capture_output=True, check=True)
    assert finished.stdout == content
    header = embedded.files["net.h"].decode()
    assert f'NET_FILE "own/net{ending}"' in header
    assert f'NET_SHA256 "{hashlib.sha256(content).hexdigest()}"' in header
    assert "float32, channels first" in header


def test_what_a_header_says_of_the_layout_is_the_files_own(tmp_path: Path) -> None:
    held = with_files(tmp_path / "b", kit__x=b"x")
    for name, order in (("kit/x", "first"), ("model.onnx", "first")):
        header = embed_bundle(held, EmbedSettings(file=name)).files["edgeclean_model.h"]
        assert f"channels {order}:".encode() in header


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("manifest.json", "has no file 'manifest.json' to embed; it has bom.cdx.json, golden"),
        ("report.html", "has no file 'report.html' to embed"),
        ("SHA256SUMS", "has no file"),
        ("own/other", "has no file 'own/other' to embed"),
        ("own/empty", "own/empty is empty; C has no array without elements"),
        *((bad, "it must name a file of the bundle") for bad in ("../x", "/etc/passwd", "", "a b")),
        ("a\x1b[2J", "it must name a file of the bundle"),
    ],
)
def test_a_file_that_the_manifest_does_not_bind_is_not_embedded(
    tmp_path: Path, name: str, words: str
) -> None:
    held = with_files(tmp_path / "b", own__empty=b"", own__x=b"x")
    with pytest.raises(UsageError, match=words):
        embed_bundle(held, EmbedSettings(file=name))


@pytest.mark.parametrize(("form", "source"), [("c", "net.c"), ("incbin", "net.S")])
def test_a_header_of_another_network_does_not_compile(
    bundle: Path, tmp_path: Path, compiler: Compiler, form: Any, source: str
) -> None:
    embedded = embed_bundle(bundle, EmbedSettings(symbol="net", form=form))
    write_files(tmp_path, embedded.files, last="net.h")
    header = (tmp_path / "net.h").read_text("utf-8")
    tag = embedded.model_sha256[:16].upper()
    (tmp_path / "net.h").write_text(header.replace(tag, "0" * 16), encoding="utf-8")
    compiled = compiler(source)
    assert compiled.returncode != 0
    assert "describes another network" in compiled.stderr


def test_incbin_notices_a_file_of_another_length(
    bundle: Path, tmp_path: Path, compiler: Compiler
) -> None:
    embedded = embed_bundle(bundle, EmbedSettings(symbol="net", form="incbin"))
    files = {**embedded.files, "net.onnx": embedded.files["net.onnx"][:-1]}
    write_files(tmp_path, files, last="net.h")
    compiled = compiler("net.S")
    assert compiled.returncode != 0
    assert "net.onnx is another network" in compiled.stderr


@pytest.mark.parametrize("form", ["c", "incbin"])
def test_the_text_depends_on_the_bundle_alone(
    bundle: Path, tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed_bundle(bundle, EmbedSettings(form=form))
    elsewhere = tmp_path / "quite another" / "place"
    shutil.copytree(bundle, elsewhere)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.chdir(elsewhere.parent)
    second = embed_bundle(Path("place"), EmbedSettings(form=form))
    assert first == second
    assert not any(b"another/" in content for content in second.files.values())


@pytest.mark.parametrize("name", ["model.onnx", "golden.safetensors", "report.html"])
def test_a_bundle_with_a_changed_file_is_not_embedded(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    contents = bytearray((copy / name).read_bytes())
    contents[-1] ^= 1
    (copy / name).write_bytes(contents)
    with pytest.raises(InputRejectedError, match=f"{name} was changed"):
        embed_bundle(copy, EmbedSettings())


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
def test_what_was_verified_is_what_is_embedded(
    bundle: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is swapped after it was verified is not read again."""
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)

    def verify_and_change(path: Path) -> VerifiedBundle:
        opened = open_bundle(path)
        contents = (copy / name).read_bytes()
        (copy / name).write_bytes(contents.replace(b"17", b"18") + b"\n")
        return opened

    expected = embed_bundle(bundle, EmbedSettings())
    monkeypatch.setattr(embed, "open_bundle", verify_and_change)
    assert embed_bundle(copy, EmbedSettings()) == expected
    with pytest.raises(InputRejectedError, match=f"{name} was changed"):
        embed_bundle(copy, EmbedSettings())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"symbol": name}, "name in C") for name in ("", "1a", "_a", "a__b", "a-b", "int", "ä")),
        ({"symbol": 'x"; system("x'}, "name in C"),
        *(
            ({"symbol": name}, "name in C")
            for name in ("static_assert", "linux", "size_t", "co_await")
        ),
        *(({"symbol": name}, "the C library has") for name in ("string", "Time", "memcpy", "sin")),
        *(
            ({"symbol": name}, "may have for something else")
            for name in ("end", "edata", "etext", "std", "va_list", "uint", "NULL", "EOF", "FILE")
        ),
        *(  # NAME_WIDTH is in limits.h or stdint.h
            ({"symbol": name}, "may have for something else")
            for name in ("int8", "uint_fast16", "size", "Schar", "intmax", "sig_atomic")
        ),
        ({"symbol": "a" * 101}, "of at most 100 characters"),
        ({"align": 3}, "power of two"),
        *(({"align": number}, "from 1 to 4096") for number in (0, -8, 8192)),
        ({"form": "s"}, "one of c, incbin"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_from(EmbedSettings, changes)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("linking", [True, False])
@pytest.mark.parametrize("fails", range(1, 6))
def test_files_that_belong_together_stay_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int, linking: bool
) -> None:
    """A disk that fails at the n-th rename leaves all of the old files, and nothing beside them."""
    old = {"a.c": b"old", "a.h": b"old", "other": b"mine"}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    new = {"a.c": b"new", "b.c": b"new", "a.h": b"new"}
    moved = []

    def counted(move: Any) -> Any:
        def failing(one: Path, target: Path) -> Any:
            moved.append(target)
            if len(moved) == fails:
                raise OSError(5, "Input/output error")
            if target.suffix == ".c":
                assert not (tmp_path / "a.h").exists(), "an old header beside a new file"
            return move(one, target)

        return failing

    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(writing, "exchange", counted(writing.exchange))
        patch.setattr("os.link", counted(os.link) if linking else no_links)
        with pytest.raises(UsageError, match="error; what was there is unchanged"):
            write_files(tmp_path, new, last="a.h")
    assert read(tmp_path) == old
    write_files(tmp_path, new, last="a.h")
    assert read(tmp_path) == {**old, **new}


def test_what_follows_may_fail_and_nothing_has_changed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    files = {tmp_path / "a": b"new", tmp_path / "b": b"new"}

    def fail_in_place() -> None:
        with in_place(files, ours=lambda _: True):
            assert read(tmp_path) == {**read(tmp_path), "a": b"new", "b": b"new"}
            raise ValueError("then")

    with pytest.raises(ValueError, match="then"):
        fail_in_place()
    assert read(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize(
    ("key", "number"),
    [("std", 0.0), ("std", -1.0), ("std", 1e-30), ("std", 1e300), ("mean", 1e300)],
)
def test_statistics_that_no_device_can_compute_with_are_not_embedded(
    tmp_path: Path, key: str, number: float
) -> None:
    copy = put_bundle(tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_bytes())
    manifest["model"][key][0] = number
    (copy / "manifest.json").write_bytes(canonical_json(manifest))
    make_manifest_fit(copy)
    with pytest.raises(InputRejectedError, match=f"schema at model/{key}/0"):
        embed_bundle(copy, EmbedSettings())
