"""Read arrays of whole numbers from an ``.npz`` file, each no further than it may be large.

What counts is the stream that is unpacked, not what the archive's directory or an array's header
say of it: they are compared with it, and a header is no reason to take memory.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgeclean.errors import InputRejectedError
from edgeclean.files.reading import is_hollow, open_regular, unreadable
from edgeclean.files.text import first_line, printable

MAX_DIRECTORY_BYTES = 2**20  # of the archive: some ten thousand names
MAX_HEADER_BYTES = 10_000
MAX_RATIO = 20  # unpacked over packed size; pictures hardly pack
FREE_BYTES = 64 * 2**20  # that may pack as well as they like
CHUNK_BYTES = 2**20


class Pack:
    """The arrays in an open archive."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        times = Counter(member.filename for member in archive.infolist())
        self.names = frozenset(
            name.removesuffix(".npy") for name, count in times.items() if count == 1
        )

    def read(self, name: str, most_bytes: int) -> NDArray[Any]:
        """Return an array of whole numbers.

        Args:
            name: one of ``names``.
            most_bytes: the largest size that is read.

        Raises:
            InputRejectedError: it holds other things, is larger, packed too well, or has other
                bytes than its header claims.
            Exception: of any kind that ``zipfile`` and numpy raise on damaged bytes.
        """
        member = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(member) as stream:
            head = io.BytesIO(stream.read(MAX_HEADER_BYTES))
            version = npy.read_magic(head)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, in_columns, dtype = read(head, max_header_size=MAX_HEADER_BYTES)
            if dtype.hasobject or dtype.kind not in "iu":
                raise InputRejectedError(f"{name} holds {dtype}; whole numbers are needed")
            claimed = math.prod(int(side) for side in shape) * dtype.itemsize
            there = member.file_size - head.tell()
            if min(shape, default=0) < 0 or claimed > most_bytes or claimed != there:
                raise InputRejectedError(
                    f"{name} claims {claimed} bytes and holds {there}; the most is {most_bytes}"
                )
            if claimed > max(FREE_BYTES, MAX_RATIO * member.compress_size):
                raise InputRejectedError(
                    f"{name} unpacks to {claimed} bytes from {member.compress_size}; at most "
                    f"{MAX_RATIO} times as many are read"
                )
            numbers = _filled(claimed, head.read(), stream)
        if numbers is None:
            raise InputRejectedError(f"{name} claims {claimed} bytes and holds other than so many")
        array = numbers.view(dtype).reshape(shape, order="F" if in_columns else "C")
        return array


@contextmanager
def open_pack(path: Path, most_bytes: int) -> Iterator[Pack]:
    """Open an archive; what goes wrong while it is read is said in one line with its name.

    Raises:
        InputRejectedError: it cannot be read, is larger, or is damaged.
    """
    where = printable(str(path))
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > most_bytes:
                raise InputRejectedError(f"larger than {most_bytes} bytes; give fewer images")
            if is_hollow(stream):
                raise InputRejectedError("nearly all of the file is a hole; copy it again")
            metered = _Metered(stream, MAX_DIRECTORY_BYTES)
            with zipfile.ZipFile(metered) as archive:
                metered.room = most_bytes + MAX_DIRECTORY_BYTES
                yield Pack(archive)
    except InputRejectedError as error:
        raise InputRejectedError(f"{where}: {error}") from None
    except OSError as error:
        raise InputRejectedError(f"{where}: {unreadable(path, error)}") from None
    except Exception as error:  # noqa: BLE001 - zipfile and numpy raise many kinds on damaged bytes
        reason = first_line(error)
        raise InputRejectedError(f"{where}: not an .npz pack ({printable(reason)})") from None


class _Metered:
    """A file of which no more than ``room`` bytes are read: a directory may have millions."""

    def __init__(self, stream: BinaryIO, room: int) -> None:
        self._stream, self.room = stream, room
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        contents = self._stream.read(self.room + 1 if size < 0 else min(size, self.room + 1))
        self.room -= len(contents)
        if self.room < 0:
            raise InputRejectedError(f"its directory is larger than {MAX_DIRECTORY_BYTES} bytes")
        return contents


def _filled(size: int, first: bytes, rest: Any) -> NDArray[np.uint8] | None:
    """Return exactly ``size`` bytes of a stream; None where it has fewer or more."""
    numbers = np.empty(size, dtype=np.uint8)  # no memory yet, but that of the pages written to
    place, part = 0, first
    while part:
        if place + len(part) > size:
            return None
        numbers[place : place + len(part)] = np.frombuffer(part, dtype=np.uint8)
        place += len(part)
        part = rest.read(CHUNK_BYTES)
    return numbers if place == size else None
