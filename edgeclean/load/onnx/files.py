"""Weights of an ONNX model that lie in other files: plain files in its own folder, nothing else."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

from onnx import TensorProto

from edgeclean.errors import InputRejectedError
from edgeclean.files.reading import is_hollow, open_regular
from edgeclean.load.kinds import other_tools_file
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.graph import read_model
from edgeclean.load.onnx.guard import TYPES, external_location, external_tensors

MOST_FILES = 4096  # beside a model: exporters may write one for each tensor
KEYS = {"location", "offset", "length", "checksum", "basepath"}


def embed_files(contents: bytes, folder: Path, limits: LoadLimits) -> tuple[bytes, dict[str, str]]:
    """Return the model with the numbers of its external files inside, and those files' SHA-256.

    Raises:
        InputRejectedError: a file is missing, a link (symbolic or hard), no regular file, or too
            small for the tensors that the model puts in it, or many of them share its bytes; a
            tensor has two places; or there are more than `MOST_FILES` files.
    """
    model = read_model(contents)
    tensors = external_tensors(model)
    room = limits.file_bytes - len(contents)
    files: dict[str, bytes] = {}
    names = sorted({external_location(tensor) for tensor in tensors})
    if len(names) > MOST_FILES:
        raise InputRejectedError(
            f"the model's weights lie in {len(names)} files beside it and at most {MOST_FILES} are "
            "read; save them in one: onnx.save(model, path, save_as_external_data=True)"
        )
    for name in names:
        files[name] = _read_plain(folder, name, room)
        room -= len(files[name])
    sections = [_section(tensor, files[external_location(tensor)]) for tensor in tensors]
    _refuse_shared(tensors, files)
    for tensor, section in zip(tensors, sections, strict=True):
        tensor.raw_data = files[external_location(tensor)][section]
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
    digests = {name: hashlib.sha256(numbers).hexdigest() for name, numbers in files.items()}
    return bytes(model.SerializeToString()), digests


def _read_plain(folder: Path, name: str, room: int) -> bytes:
    """Read a file of the folder itself: the opened file is checked, not its name."""
    try:
        with open_regular(folder / name, follow=False, links=1) as stream:
            # Not read where it cannot fit: a file that is one hole takes memory only when read.
            fits = os.fstat(stream.fileno()).st_size <= room and not is_hollow(stream)
            numbers = stream.read(max(0, room) + 1) if fits else b""
    except OSError as error:
        raise InputRejectedError(
            f"the model's weights in {name!r} cannot be read ({error.strerror}); only a plain file "
            "beside the model is"
        ) from None
    if not fits or len(numbers) > room:
        raise InputRejectedError(
            f"the model's weights in {name!r} are larger than the limit file_bytes leaves, or "
            "nearly all hole"
        )
    return numbers


def _refuse_shared(tensors: list[TensorProto], files: dict[str, bytes]) -> None:
    """Refuse more than two uses of a file's bytes: a thousand tensors may lie in one megabyte."""
    used = dict.fromkeys(files, 0)
    for tensor in tensors:
        used[external_location(tensor)] += _bytes_of(tensor)
    for name, numbers in files.items():
        if used[name] > 2 * len(numbers):
            raise InputRejectedError(
                f"the model's tensors take {used[name]} bytes of {name!r}, which has "
                f"{len(numbers)}; save each in a place of its own"
            )


def _bytes_of(tensor: TensorProto) -> int:
    return int(math.prod(tensor.dims)) * TYPES[tensor.data_type]


def _section(tensor: TensorProto, numbers: bytes) -> slice:
    """Return which bytes of a file are one tensor's."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    label = f"tensor {tensor.name[:80]!r}"
    needed = _bytes_of(tensor)
    bounds = [where.get("offset", "0"), where.get("length", str(needed))]
    # Of two places for one tensor, another reader may take the other.
    once = len(where) == len(tensor.external_data)
    if (
        not once
        or not where.keys() <= KEYS
        or not all(bound.isascii() and bound.isdigit() and len(bound) < 20 for bound in bounds)
    ):
        raise InputRejectedError(f"{label}: its place in {where['location']!r} is malformed")
    start, length = (int(bound) for bound in bounds)
    if length != needed or start + length > len(numbers):
        words = other_tools_file(numbers)
        raise InputRejectedError(
            f"{label}: {length} bytes at {start} of {where['location']!r}, which has "
            f"{len(numbers)}; its shape needs {needed}{f'; the file is {words}' if words else ''}"
        )
    return slice(start, start + length)
