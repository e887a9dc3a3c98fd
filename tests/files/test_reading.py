"""What opens a file: a regular one alone, at once, or an error in words."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.reading import is_folder, is_regular, open_regular, read_small_file
from edgeclean.load.limits import read_input


@pytest.mark.parametrize("address", ["https://host/net.onnx", "s3://bucket/net.pt", "HF://a/b"])
def test_an_address_is_told_as_one(address: str) -> None:
    with pytest.raises(UsageError, match="is an address, and nothing is fetched; download"):
        read_small_file(Path(address), 100, hint="")
    with pytest.raises(InputRejectedError, match="is an address, and nothing is fetched; download"):
        read_input(Path(address), 100)


@pytest.mark.parametrize("path", ["https", "s3/bucket", "nets:/a"])
def test_what_only_looks_like_an_address_is_a_path(path: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\)"):
        read_small_file(Path(path), 100, hint="")


def test_a_regular_file_is_opened_under_any_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"contents")
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(file)
    other.hardlink_to(file)
    for name in (file, link, other):
        with open_regular(name, links=2) as stream:
            assert stream.read() == b"contents"
        assert is_regular(name)
        assert not is_folder(name)
    with pytest.raises(OSError, match="hard links"):
        open_regular(file, links=1)
    with pytest.raises(OSError, match="symbolic links"):
        open_regular(link, follow=False)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def listening(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as one, tempfile.TemporaryDirectory() as short:
        one.bind(f"{short}/s")  # the name of a socket has 107 characters at most
        (Path(short) / "s").rename(path)
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def behind_a_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path / "below"


NOT_FILES: dict[str, Callable[[Path], Path]] = {
    "pipe": pipe,
    "socket": listening,
    "folder": lambda path: path.parent,
    "device": lambda _path: Path("/dev/zero"),
    "terminal": lambda _path: Path("/dev/ptmx"),
    "loop": loop,
    "behind a file": behind_a_file,
    "missing": lambda path: path,
    "long name": lambda path: path / ("n" * 300),
    "long path": lambda path: path / ("n/" * 3000),
    "NUL": lambda path: Path(f"{path}\0.toml"),
    "half a pair": lambda path: Path(f"{path}\ud800"),
}


@pytest.mark.parametrize("kind", NOT_FILES)
def test_nothing_else_is_opened_or_waited_for(kind: str, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    place = NOT_FILES[kind](tmp_path / "place")
    with pytest.raises(OSError, match=r"\w") as refused:
        open_regular(place)
    assert refused.value.strerror
    assert not is_regular(place)
    assert is_folder(place) == (kind == "folder")
    with pytest.raises(Exception, match="cannot be read") as said:
        read_small_file(place, 10, hint="")
    assert type(said.value).__name__ == "UsageError"
    assert len(list(Path("/proc/self/fd").iterdir())) == before
