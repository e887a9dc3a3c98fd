"""A file that is one hole costs nothing to send, and must cost nothing to refuse."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeclean.bundle import verify
from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import MIB, read_input
from edgeclean.load.model_file import read_model_file
from edgeclean.load.onnx import files

LIMIT = 256 * MIB


def by_verify(path: Path) -> object:
    return verify._read_file(path, path.name)


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda path: read_input(path, LIMIT),
    "weights of an ONNX model": lambda path: files._read_plain(path.parent, path.name, LIMIT),
    "bundle": by_verify,
    "model file": read_model_file,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_hole_beyond_the_limit_is_refused_unread(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "MAX_TEXT_BYTES", LIMIT)
    path = tmp_path / "hole"
    path.touch()
    with path.open("r+b") as stream:
        stream.truncate(LIMIT + 1)
    tracemalloc.start()
    try:
        with pytest.raises(InputRejectedError, match="larger than"):
            READERS[reader](path)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


def test_a_file_that_grows_while_it_is_read_is_refused() -> None:
    """Its size was right when it was looked at: ``/proc`` has files whose size is always 0."""
    with pytest.raises(InputRejectedError, match="larger than 10 bytes"):
        read_input(Path("/proc/self/status"), 10)


HOLLOW: dict[str, Callable[[Path], object]] = {
    name: reader for name, reader in READERS.items() if name != "model file"
}


def _with_data(path: Path, size: int, data: int) -> Path:
    """A file of this size, all hole but its end."""
    with path.open("wb") as stream:
        stream.truncate(size)
        stream.seek(size - data)
        stream.write(b"x" * data)
    return path


@pytest.mark.parametrize("reader", HOLLOW)
def test_a_hole_within_the_limit_is_refused_unread(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs as little to send as a larger one."""
    monkeypatch.setattr(verify, "MAX_TEXT_BYTES", LIMIT)
    path = _with_data(tmp_path / "hole", LIMIT, LIMIT // 64)
    tracemalloc.start()
    try:
        with pytest.raises(InputRejectedError, match="hole"):
            HOLLOW[reader](path)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("reader", HOLLOW)
def test_a_file_with_some_holes_is_read(reader: str, tmp_path: Path) -> None:
    data = 4 * MIB
    read = HOLLOW[reader](_with_data(tmp_path / "some", 4 * data, data))
    assert read == bytes(3 * data) + b"x" * data
