"""Weights of an ONNX model that lie in other files: plain files in its own folder, nothing else."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from pathlib import Path

from onnx import TensorProto

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.graph import read_model
from edgeclean.load.onnx.guard import TYPES, external_location, external_tensors

KEYS = {"location", "offset", "length", "checksum", "basepath"}


def embed_files(contents: bytes, folder: Path, limits: LoadLimits) -> tuple[bytes, dict[str, str]]:
    """Return the model with the numbers of its external files inside, and those files' SHA-256.

    Raises:
        InputRejectedError: a file is missing, a link (symbolic or hard), no regular file, or too
            small for the tensors that the model puts in it.
    """
    model = read_model(contents)
    tensors = external_tensors(model)
    room = limits.file_bytes - len(contents)
    files: dict[str, bytes] = {}
    for name in sorted({external_location(tensor) for tensor in tensors}):
        files[name] = _read_plain(folder, name, room)
        room -= len(files[name])
    for tensor in tensors:
        tensor.raw_data = _section(tensor, files[external_location(tensor)])
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
    digests = {name: hashlib.sha256(numbers).hexdigest() for name, numbers in files.items()}
    return bytes(model.SerializeToString()), digests


def _read_plain(folder: Path, name: str, room: int) -> bytes:
    """Read a file of the folder itself: the opened file is checked, not its name."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(folder / name, flags)
    except OSError as error:
        raise InputRejectedError(
            f"the model's weights in {name!r} cannot be read ({error.strerror}); only a plain file "
            "beside the model is"
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise InputRejectedError(
                f"the model's weights in {name!r}: not a plain file, or one with several hard "
                "links; copy it"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            # Not read where it cannot fit: a file that is one hole takes memory only when read.
            fits = status.st_size <= room
            numbers = stream.read(max(0, room) + 1) if fits else b""
    finally:
        os.close(descriptor)
    if not fits or len(numbers) > room:
        raise InputRejectedError(
            f"the model's weights in {name!r} are larger than the limit file_bytes leaves"
        )
    return numbers


def _section(tensor: TensorProto, numbers: bytes) -> bytes:
    """Return the bytes of a file that are one tensor's."""
    where = {entry.key: entry.value for entry in tensor.external_data}
    label = f"tensor {tensor.name[:80]!r}"
    needed = math.prod(tensor.dims) * TYPES[tensor.data_type]
    bounds = [where.get("offset", "0"), where.get("length", str(needed))]
    if not where.keys() <= KEYS or not all(
        bound.isascii() and bound.isdigit() and len(bound) < 20 for bound in bounds
    ):
        raise InputRejectedError(f"{label}: its place in {where['location']!r} is malformed")
    start, length = (int(bound) for bound in bounds)
    if length != needed or start + length > len(numbers):
        raise InputRejectedError(
            f"{label}: {length} bytes at {start} of {where['location']!r}, which has "
            f"{len(numbers)}; its shape needs {needed}"
        )
    return numbers[start : start + length]
