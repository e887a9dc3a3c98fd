"""What kind of file an input is, by its first bytes: what it is called does not matter."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Literal

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import printable
from edgeclean.load.limits import ZIP_MAGIC

PICKLE_MAGIC = b"\x80"
Kind = Literal["torch-zip", "torch-legacy", "safetensors", "onnx"]
# Files of other tools, by a few bytes at a place, and what to do with one.
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF", "a Keras or HDF5 file; convert it to ONNX (tf2onnx), or save its weights"),
    (4, b"TFL3", "a TensorFlow Lite file; convert its model to ONNX (tf2onnx)"),
    (0, b"ftrt", "a TensorRT engine, which is code; give the network that it was built from"),
    (0, b"GGUF", "a GGUF file; give a checkpoint of PyTorch, safetensors or ONNX"),
    (0, b"version https://git-lfs", "a pointer of Git LFS; run git lfs pull to get the file"),
    (0, b"\x1f\x8b", "packed by gzip; unpack it first"),
    (0, b"\xfd7zXZ", "packed by xz; unpack it first"),
    (0, b"BZh", "packed by bzip2; unpack it first"),
    (0, b"7z\xbc\xaf", "packed by 7-Zip; unpack it first"),
    (257, b"ustar", "a tar archive; unpack it first"),
    (0, b"\x93NUMPY", "a numpy array; give a checkpoint of PyTorch, safetensors or ONNX"),
)
# The fields of an ONNX ModelProto (onnx.proto3): those that are numbers, and those with a length.
_NUMBERS, _LENGTHS = (1, 5), (2, 3, 4, 6, 7, 8, 14, 20, 25, 26)
_GRAPH = 7


def kind_of(path: Path, contents: bytes) -> Kind:
    """Return the format of a file: of its bytes, or where these are unclear, of its suffix.

    Raises:
        InputRejectedError: the bytes are of none that we read.
    """
    suffix = path.suffix.lower()
    archive = contents.startswith(ZIP_MAGIC) and zipfile.is_zipfile(io.BytesIO(contents))
    if _is_safetensors(contents) or (suffix == ".safetensors" and not archive):
        return "safetensors"
    if suffix == ".onnx" and not archive:
        return "onnx"
    if contents.startswith(ZIP_MAGIC):
        return "torch-zip"
    if contents.startswith(PICKLE_MAGIC):
        return "torch-legacy"
    if _is_onnx(contents):
        return "onnx"
    words = other_tools_file(contents)
    if words:
        raise InputRejectedError(f"{printable(str(path))}: {words}")
    raise InputRejectedError(
        f"{printable(str(path))}: starts with neither a zip archive nor a pickle, so torch.save "
        "did not write it; nor is it safetensors or ONNX"
    )


def other_tools_file(contents: bytes) -> str:
    """Return what another tool's file is and what to do with it; "" for what is not known."""
    if contents.startswith(b"{") and b'"weight_map"' in contents:
        return "an index of weights in several parts; save them as one file"
    for place, magic, words in _OTHERS:
        if contents[place : place + len(magic)] == magic:
            return words
    return ""


def _is_safetensors(contents: bytes) -> bool:
    """Return whether the header's length and first character are those of a safetensors file."""
    if len(contents) < 10:
        return False
    (length,) = struct.unpack("<Q", contents[:8])
    return 2 <= length <= len(contents) - 8 and contents[8:9] == b"{"


def _is_onnx(contents: bytes) -> bool:
    """Return whether the bytes are the fields of an ONNX model, one behind the other, to the end.

    Only the outermost fields are looked at: a few, whatever the size.
    """
    place, fields = 0, set()
    while place < len(contents):
        tag, place = _varint(contents, place)
        field, wire = tag >> 3, tag & 7
        number, place = _varint(contents, place)
        if place < 0 or (field, wire) not in {
            *((known, 0) for known in _NUMBERS),
            *((known, 2) for known in _LENGTHS),
        }:
            return False
        fields.add(field)
        place += number if wire else 0
    return place == len(contents) and _GRAPH in fields


def _varint(contents: bytes, place: int) -> tuple[int, int]:
    """Return the number that begins at a place, and where it ends; -1 where there is none."""
    number = 0
    for index in range(10):
        byte = contents[place + index] if 0 <= place + index < len(contents) else -1
        if byte < 0:
            break
        number |= (byte & 127) << 7 * index
        if byte < 128:
            return number, place + index + 1
    return 0, -1
