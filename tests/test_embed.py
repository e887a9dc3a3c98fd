from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tiny_networks import tiny_contents

from edgeclean.bundles import embed
from edgeclean.bundles.bundle import write_bundle
from edgeclean.bundles.embed import EmbedSettings, embed_bundle
from edgeclean.bundles.verify import VerifyRecord, verify_bundle
from edgeclean.cli.files import write_files
from edgeclean.config import settings_from
from edgeclean.errors import InputRejectedError, UsageError

COMPILER = shutil.which("cc")
needs_cc = pytest.mark.skipif(COMPILER is None, reason="no C compiler is installed")
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


def compile_(folder: Path, source: str, *flags: str) -> subprocess.CompletedProcess[str]:
    (folder / "main.c").write_text(PROGRAM, encoding="utf-8")
    return subprocess.run(
        [str(COMPILER), *flags, *STRICT, "-I.", "main.c", source, "-o", "main"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_cc
@pytest.mark.parametrize("align", [1, 64, 4096])
@pytest.mark.parametrize(
    ("form", "source", "standard"),
    [("c", "net.c", "-std=c99"), ("c", "net.c", "-std=c11"), ("incbin", "net.S", "-std=c11")],
)
def test_a_program_holds_the_very_bytes(
    bundle: Path, tmp_path: Path, form: Any, source: str, standard: str, align: int
) -> None:
    embedded = embed_bundle(bundle, EmbedSettings(symbol="net", form=form, align=align))
    write_files(tmp_path, embedded.files, last="net.h")
    compiled = compile_(tmp_path, source, standard)
    assert compiled.returncode == 0, compiled.stderr
    finished = subprocess.run([str(tmp_path / "main")], capture_output=True, check=True)
    assert finished.stdout == (bundle / "model.onnx").read_bytes()
    assert hashlib.sha256(finished.stdout).hexdigest() == embedded.model_sha256
    assert f'NET_SHA256 "{embedded.model_sha256}"' in embedded.files["net.h"].decode()


@needs_cc
@pytest.mark.parametrize(("form", "source"), [("c", "net.c"), ("incbin", "net.S")])
def test_a_header_of_another_network_does_not_compile(
    bundle: Path, tmp_path: Path, form: Any, source: str
) -> None:
    embedded = embed_bundle(bundle, EmbedSettings(symbol="net", form=form))
    write_files(tmp_path, embedded.files, last="net.h")
    header = (tmp_path / "net.h").read_text("utf-8")
    tag = embedded.model_sha256[:16].upper()
    (tmp_path / "net.h").write_text(header.replace(tag, "0" * 16), encoding="utf-8")
    compiled = compile_(tmp_path, source)
    assert compiled.returncode != 0
    assert "describes another network" in compiled.stderr


@needs_cc
def test_incbin_notices_a_file_of_another_length(bundle: Path, tmp_path: Path) -> None:
    embedded = embed_bundle(bundle, EmbedSettings(symbol="net", form="incbin"))
    files = {**embedded.files, "net.onnx": embedded.files["net.onnx"][:-1]}
    write_files(tmp_path, files, last="net.h")
    compiled = compile_(tmp_path, "net.S")
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
def test_a_file_that_changes_after_it_was_verified_is_not_embedded(
    bundle: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)

    def verify_and_change(path: Path) -> VerifyRecord:
        record = verify_bundle(path)
        contents = (copy / name).read_bytes()
        (copy / name).write_bytes(contents.replace(b"17", b"18") + b"\n")
        return record

    monkeypatch.setattr(embed, "verify_bundle", verify_and_change)
    with pytest.raises(InputRejectedError, match=f"{name} was changed while it was read"):
        embed_bundle(copy, EmbedSettings())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"symbol": name}, "name in C") for name in ("", "1a", "_a", "a__b", "a-b", "int", "ä")),
        ({"symbol": 'x"; system("x'}, "name in C"),
        ({"symbol": "a" * 101}, "of at most 100 characters"),
        ({"align": 3}, "power of two"),
        *(({"align": number}, "from 1 to 4096") for number in (0, -8, 8192)),
        ({"form": "s"}, "one of c, incbin"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_from(EmbedSettings, changes)


def test_files_that_belong_together_stay_together(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.c": b"old", "a.h": b"old"}, last="a.h")
    (tmp_path / "other").write_bytes(b"mine")
    (tmp_path / "b.c").mkdir()  # cannot be replaced: found out in the middle of the renames
    with pytest.raises(UsageError, match="was removed"):
        write_files(tmp_path, {"a.c": b"new", "b.c": b"new", "a.h": b"new"}, last="a.h")
    # The header is gone rather than old: what is left does not compile.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.c", "b.c", "other"]
    write_files(tmp_path, {"a.c": b"new", "a.h": b"new"}, last="a.h")
    assert (tmp_path / "a.h").read_bytes() == b"new"
    assert (tmp_path / "other").read_bytes() == b"mine"
