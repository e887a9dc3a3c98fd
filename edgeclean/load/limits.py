"""Checks of an untrusted file by its bytes alone, before any parser of weights reads them.

Limits bound what a file may cost; each check refuses with one line and executes nothing.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeclean.errors import InputRejectedError
from edgeclean.files.documents import parse_json
from edgeclean.files.reading import is_hollow, open_regular, unreadable
from edgeclean.files.text import first_line, printable
from edgeclean.settings import Settings, setting

MIB = 1024**2
_LOCAL_HEADER = 30  # bytes in front of a member's name
VALUES_PER_TENSOR = 12  # in a safetensors header: type, eight sides at most, two offsets, itself
ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimits(Settings):
    """The most that one input may cost, and which of its networks is meant.

    Raise a limit where a real network needs more.

    Attributes:
        state_dict: the network to take where a checkpoint holds several that fit, as the refusal
            names them; empty to take the one that fits.
        file_bytes: size of the file, of what its archive unpacks to, and of all its tensors.
        entries: members of a zip archive, tensors of a safetensors file, tensors of a state dict
            and of all networks of a checkpoint together.
        zip_ratio: unpacked over packed size; ``torch.save`` does not compress at all.
        header_bytes: the JSON header of a safetensors file.
        onnx_nodes: operators of an ONNX graph.
        activations: numbers that all operations of a network put out for one image.
        operands: numbers that one operation takes in, puts out and works on, for one image.
        macs: multiply-accumulates of a network for one image.
        reads: numbers that all operations take in for one image, those of a window (of a
            convolution or a pool) once for every place of the window.
        memory_bytes: memory of the parsing process, beside five times the file's size.
        cpu_seconds: processor time of the parsing process, beside a second for each 32 MiB.
    """

    state_dict: str = setting("", longest=500)
    file_bytes: int = setting(1024 * MIB, at_least=1, at_most=2**40)
    entries: int = setting(20_000, at_least=1, at_most=10**7)
    zip_ratio: int = setting(20, at_least=1, at_most=10**6)
    header_bytes: int = setting(16 * MIB, at_least=1, at_most=2**30)
    onnx_nodes: int = setting(20_000, at_least=1, at_most=10**7)
    activations: int = setting(2**27, at_least=1, at_most=2**40)
    operands: int = setting(2**26, at_least=1, at_most=2**40)
    macs: int = setting(10**11, at_least=1, at_most=10**15)
    reads: int = setting(2**30, at_least=1, at_most=2**50)
    memory_bytes: int = setting(1024 * MIB, at_least=1, at_most=2**44)
    cpu_seconds: int = setting(10, at_least=1, at_most=10**6)


def read_input(path: Path, limit_bytes: int) -> bytes:
    """Read the whole of a regular file of at most ``limit_bytes``.

    Raises:
        InputRejectedError: there is no such file, it is no regular one, is empty, too large, or
            nearly all hole.
    """
    shown = printable(str(path))
    try:
        with open_regular(path) as stream:
            # A file that is one hole costs nothing to send, and all of its size to read.
            small = os.fstat(stream.fileno()).st_size <= limit_bytes
            hollow = small and is_hollow(stream)
            contents = stream.read(limit_bytes + 1) if small and not hollow else b""
    except OSError as error:
        raise InputRejectedError(f"{shown}: {unreadable(path, error)}") from None
    if not small or len(contents) > limit_bytes:
        raise InputRejectedError(
            f"{shown}: larger than {limit_bytes} bytes; raise the limit file_bytes if it is right"
        )
    if hollow:
        raise InputRejectedError(f"{shown}: nearly all of the file is a hole; copy it again")
    if not contents:
        raise InputRejectedError(f"{shown}: the file is empty; download or copy it again")
    return contents


def check_zip(contents: bytes, limits: LoadLimits) -> None:
    """Check an archive's directory: count, sizes, ratio, names, and what kind of archive it is.

    Raises:
        InputRejectedError: the directory is damaged, over a limit, ambiguous between zip readers,
            or that of TorchScript or an exported program, which hold code.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(contents)) as archive:
            members = archive.infolist()
    except Exception as error:  # noqa: BLE001 - zipfile raises many kinds on hostile bytes
        raise InputRejectedError(
            f"the zip archive is damaged or cut short ({first_line(error)})"
        ) from None
    if len(members) > limits.entries:
        raise InputRejectedError(
            f"the archive has {len(members)} members; the limit entries is {limits.entries}"
        )
    unpacked = sum(member.file_size for member in members)
    if unpacked > limits.file_bytes:
        raise InputRejectedError(
            f"the archive unpacks to {unpacked} bytes; the limit file_bytes is {limits.file_bytes}"
        )
    if unpacked > limits.zip_ratio * len(contents):
        raise InputRejectedError(
            f"the archive unpacks to {unpacked / len(contents):.0f} times its size; the limit "
            f"zip_ratio is {limits.zip_ratio}"
        )
    for member in members:
        _check_member(member, limits)
    _check_names([member.filename for member in members])
    _check_places(members, len(contents))


def check_safetensors(contents: bytes, limits: LoadLimits) -> None:
    """Check a safetensors header before its own parser does: length, JSON, duplicates, count.

    Raises:
        InputRejectedError: the header is damaged, too long, or names one tensor twice.
    """
    if len(contents) < 8:
        raise InputRejectedError("not a safetensors file: shorter than its 8-byte header length")
    (length,) = struct.unpack("<Q", contents[:8])
    if length > min(limits.header_bytes, len(contents) - 8):
        raise InputRejectedError(
            f"the safetensors header claims {length} bytes; the file has {len(contents) - 8} after "
            f"the length, and the limit header_bytes is {limits.header_bytes}"
        )
    try:
        header = parse_json(
            contents[8 : 8 + length], most_values=VALUES_PER_TENSOR * limits.entries
        )
    except ValueError as error:
        raise InputRejectedError(
            f"the safetensors header is not valid ({first_line(error)})"
        ) from None
    if not isinstance(header, dict) or len(header) > limits.entries:
        raise InputRejectedError(
            f"the safetensors header must be an object of at most {limits.entries} tensors"
        )


def _check_member(member: zipfile.ZipInfo, limits: LoadLimits) -> None:
    name = member.filename
    if member.flag_bits & 0x1:
        raise InputRejectedError(f"archive member {name[:80]!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputRejectedError(
            f"archive member {name[:80]!r} is packed by method {member.compress_type}; only "
            "stored and deflated ones are read"
        )
    # A small member may pack well (a pickle does); a bomb is one that also gets large.
    if member.file_size > max(MIB, limits.zip_ratio * member.compress_size):
        raise InputRejectedError(
            f"archive member {name[:80]!r} unpacks to {member.file_size} bytes from "
            f"{member.compress_size}; the limit zip_ratio is {limits.zip_ratio}"
        )
    parts = member.orig_filename.split("/")
    if (
        member.orig_filename != name  # Python cut it at a NUL byte
        or not name.isprintable()
        or "\\" in name
        or ":" in name
        or ".." in parts
        or name.startswith("/")
    ):
        raise InputRejectedError(
            f"archive member {name[:80]!r} has a name that torch.save would not write"
        )


def _check_places(members: Iterable[zipfile.ZipInfo], end: int) -> None:
    """Refuse members that lie in one another: small in the file, many times that when read."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    starts = [member.header_offset for member in ordered]
    for member, following in zip(ordered, [*starts[1:], end], strict=True):
        name = member.orig_filename.encode("utf-8", "replace")
        if member.header_offset + _LOCAL_HEADER + len(name) + member.compress_size > following:
            raise InputRejectedError(f"archive member {member.filename[:80]!r} overlaps another")


def _check_names(names: Iterable[str]) -> None:
    # Two zip readers may pick different ones of two equal names, and a scanner may check one
    # while torch loads the other: nothing that depends on such a choice is read.
    times = Counter(name.casefold() for name in names)
    twice = [name for name, count in times.items() if count > 1]
    if twice:
        raise InputRejectedError(f"the archive holds {twice[0][:80]!r} twice")
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise InputRejectedError(
            "a TorchScript archive, which holds code; ask for a state dict (model.state_dict())"
        )
    if "archive_format" in inner or any(name.startswith("models/") for name in inner):
        raise InputRejectedError(
            "an exported program (.pt2), which holds code; ask for a state dict or an ONNX file"
        )
    if len({name.partition("/")[0] for name in names}) != 1 or "data.pkl" not in inner:
        raise InputRejectedError(
            "a zip archive, but not one of torch.save: that has one folder with data.pkl in it"
        )
