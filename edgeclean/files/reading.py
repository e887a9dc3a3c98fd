"""Open files that a user or a stranger names, read small ones whole, parse TOML without trust.

Every file that is read is opened by `open_regular`, and looked up by `is_folder` or `is_regular`:
a name may lead to a pipe that nobody writes to, to a device, round in a loop or nowhere.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from edgeclean.errors import EdgecleanError, UsageError
from edgeclean.files.documents import parse_toml
from edgeclean.files.text import first_line, shown

MOST_BITS = 63  # of a whole number, beside its sign
FREE_HOLE = 2**20  # bytes; a bundle may have a thousand files
MOST_HOLLOW = 20  # times its data that a file may be long
_ADDRESS = re.compile(r"(?:https?|ftp|s3|gs|hf|git|ssh):/", re.IGNORECASE)  # a Path has one slash


def open_regular(path: Path, *, follow: bool = True, links: int | None = None) -> BinaryIO:
    """Open a regular file for reading, without waiting for whoever holds the other end of a pipe.

    It is the opened file that is looked at, not its name, which somebody may exchange.

    Args:
        path: the file.
        follow: whether the name itself may be a symbolic link.
        links: how many names the file may have, hard links; any number if None.

    Returns:
        The open file, for the caller to bound what is read of it: its size is in ``os.fstat``.

    Raises:
        OSError: there is no such file, it may not be read or is no regular one, or no file can
            have that name; ``strerror`` says so in words.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    except ValueError:  # a NUL, or half a surrogate pair
        raise OSError(errno.EINVAL, "no file can have that name") from None
    except OSError as error:
        if follow or error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "reached by symbolic links; copy the file itself") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if links is not None and status.st_nlink > links:
            raise OSError(errno.EMLINK, "a file with several hard links; copy it")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def is_hollow(file: BinaryIO) -> bool:
    """Return whether a file is large and nearly all hole.

    Such a file costs nothing to send and all of its size to read. Filesystems that do not tell
    where holes are call everything data.
    """
    descriptor = file.fileno()
    size, data, place = os.fstat(descriptor).st_size, 0, 0
    if size <= FREE_HOLE or not hasattr(os, "SEEK_DATA"):
        return False
    try:
        while place < size and data * MOST_HOLLOW < size:
            start = os.lseek(descriptor, place, os.SEEK_DATA)
            place = os.lseek(descriptor, start, os.SEEK_HOLE)
            data += place - start
    except OSError:  # no data behind this place
        pass
    os.lseek(descriptor, 0, os.SEEK_SET)
    return data * MOST_HOLLOW < size


def is_folder(path: Path, *, follow: bool = True) -> bool:
    """Return whether the path leads to a folder; False also where it cannot be looked up."""
    return _is(stat.S_ISDIR, path, follow)


def is_regular(path: Path, *, follow: bool = True) -> bool:
    """Return whether the path leads to a regular file; False also where it cannot be looked up."""
    return _is(stat.S_ISREG, path, follow)


def unreadable(path: Path, reason: OSError) -> str:
    """Return the words for a file that cannot be read; of an address, that nothing is fetched."""
    if _ADDRESS.match(str(path)):
        return "is an address, and nothing is fetched; download the file, and give its path"
    return f"cannot be read ({reason.strerror or reason})"


def read_small_file(
    path: Path, most_bytes: int, *, hint: str, error: type[EdgecleanError] = UsageError
) -> bytes:
    """Read the contents; no more than ``most_bytes`` + 1 are ever read.

    Args:
        path: the file.
        most_bytes: the largest size that is read.
        hint: advice for a file that is larger.
        error: the kind of the refusal.

    Raises:
        EdgecleanError: of the kind ``error``: it cannot be read, or is larger.
    """
    try:
        with open_regular(path) as stream:
            contents = stream.read(most_bytes + 1)
    except OSError as reason:
        raise error(f"{path}: {unreadable(path, reason)}") from None
    if len(contents) > most_bytes:
        raise error(f"{path}: larger than {most_bytes} bytes; {hint}")
    return contents


def read_small_toml(
    path: Path, most_bytes: int, *, hint: str, error: type[EdgecleanError] = UsageError
) -> dict[str, Any]:
    """Read the tables and keys of a TOML file, not yet checked; see `read_small_file`.

    Raises:
        EdgecleanError: of the kind ``error``: also for what is not TOML.
    """
    contents = read_small_file(path, most_bytes, hint=hint, error=error)
    try:
        entries = parse_toml(contents.removeprefix(codecs.BOM_UTF8))  # as Windows' editors write
        _refuse_long_numbers(entries)
        return entries
    except ValueError as wrong:
        why = first_line(wrong).partition("; use sys.")[0]  # advice for programs, of Python's own
        raise error(f"{path}: not a TOML file ({why})") from None


def _is(kind: Callable[[int], bool], path: Path, follow: bool) -> bool:
    try:
        return kind(path.stat(follow_symlinks=follow).st_mode)
    except (OSError, ValueError):  # too long, through a file, in a folder that may not be read
        return False


def _refuse_long_numbers(entry: object, key: str = "") -> None:
    """Refuse whole numbers that TOML does not have, and that Python refuses to write in a message.

    Source: TOML 1.0, "Integer": 64 bits, or else an error.
    """
    if isinstance(entry, int) and entry.bit_length() > MOST_BITS:
        raise ValueError(f"{shown(key)} is {shown(entry)}; a whole number has at most 64 bits")
    if isinstance(entry, dict):
        for name, below in entry.items():
            _refuse_long_numbers(below, f"{key}.{name}" if key else name)
    elif isinstance(entry, list):
        for below in entry:
            _refuse_long_numbers(below, key)
