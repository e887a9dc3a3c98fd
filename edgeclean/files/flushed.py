"""Write new files that outlive a power cut, and are owned and closed as what they replace."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath


def write_files(folder: Path, files: Mapping[str, bytes], *, instead_of: Path) -> None:
    """Write files into a folder that is there, and flush all of it to the disk.

    Args:
        folder: the folder; what lies in it already stays.
        files: contents by relative POSIX path, none of which is there.
        instead_of: the folder that it is going to replace, which need not be there; see
            `close_as`.

    Raises:
        OSError: a file cannot be written.
    """
    folders = {folder}
    _close_folder_as(folder, instead_of)
    for name, content in files.items():
        path = folder.joinpath(*PurePosixPath(name).parts)
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            _close_folder_as(folder / parent, instead_of / parent)
            folders.add(folder / parent)
        with path.open("xb") as file:
            close_as(file.fileno(), instead_of / path.relative_to(folder))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for each in folders:
        sync(each)


def close_as(new: int, old: Path) -> None:
    """Close a new file or folder, before anything is in it, to all whom the old one is closed to.

    It gets the old one's group and owner where it may, and loses what permissions the old one
    lacks. Where there is no old one, or the filesystem has no permissions, nothing changes.

    Args:
        new: an open descriptor of it.
        old: the path of what it is going to replace.
    """
    with suppress(OSError):
        before = old.lstat()
        allowed = before.st_mode
        try:
            os.fchown(new, -1, before.st_gid)
        except OSError:  # not in that group: another one gets no more than everybody
            allowed &= ~0o070 | (allowed & 0o007) << 3
        os.fchmod(new, os.fstat(new).st_mode & (allowed | ~0o777))
        os.fchown(new, before.st_uid, -1)  # last: who has given it away, may not close it any more


def sync(folder: Path) -> None:
    """Make the entries of a folder outlive a power cut.

    Raises:
        OSError: it is no folder, or may not be read.
    """
    descriptor = _open_folder(folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _close_folder_as(new: Path, old: Path) -> None:
    descriptor = _open_folder(new)
    try:
        close_as(descriptor, old)
    finally:
        os.close(descriptor)


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
