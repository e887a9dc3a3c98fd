"""Temporary folders that go with the run, or with a later one where the run was killed.

A folder is known as this program's by a file in it, and as in use by the lock on that file, which
the system takes away with the last process that holds it. What has no such file is somebody else's
and stays, as does what belongs to another user.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

MARK = ".edgeclean-temporary"
MOST_ENTRIES = 100_000  # of the folder of temporary files, that are looked at


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Make a temporary folder and remove it at the end, with those that killed runs left.

    Args:
        prefix: the beginning of its name, and of the names of those that are looked at.

    Raises:
        OSError: no temporary folder can be made.
    """
    with suppress(OSError):
        remove_left(prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        lock = _locked(folder)
        try:
            yield folder
        finally:
            os.close(lock)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left(prefix: str) -> None:
    """Remove the temporary folders of runs that have ended without doing so themselves.

    Raises:
        OSError: the folder of temporary files cannot be looked through.
    """
    with os.scandir(tempfile.gettempdir()) as entries:
        names = [one.name for one in islice(entries, MOST_ENTRIES) if one.name.startswith(prefix)]
    for name in names:
        folder = Path(tempfile.gettempdir(), name)
        with suppress(OSError):
            _remove_if_left(folder)


def _locked(folder: Path) -> int:
    """Put the mark into a folder, locked before it has its name; its descriptor, not inherited.

    Else another run could find it between the two, and take the folder for one that was left.
    """
    new = folder / f"{MARK}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(folder / MARK)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove_if_left(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    lock = os.open(folder / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
