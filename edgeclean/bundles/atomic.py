"""A folder that appears whole or not at all, and that only one run writes.

A run holds the output from its start to its end (`hold_folder`), so that a second one is refused
before it has worked for minutes. At the end `replace_folder` writes everything beside the output,
on the same filesystem, flushes it to the disk, and exchanges the two in one system call. Killed at
any moment, a run leaves the old folder or the new one; what it left beside, the next run removes.
On a filesystem that cannot exchange, a run killed between two renames leaves the old folder beside
its place, and the next run puts it back.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeclean.errors import OutputInUseError, UsageError

AT_FDCWD = -100  # linux/fcntl.h
RENAME_EXCHANGE = 2  # linux/fs.h

Seal = Callable[[Path], Mapping[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFolder:
    """An output folder that no other run may write while this value is in use.

    Attributes:
        path: absolute, symbolic links resolved: what is replaced is the folder itself.
    """

    path: Path

    @property
    def lock(self) -> Path:
        """The file whose lock says that the folder is held."""
        return self.path.with_name(f".{self.path.name}.lock")

    @property
    def staging(self) -> Path:
        """What holds everything that a run writes until it is in place."""
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def partial(self) -> Path:
        """Where the new folder is written; after an exchange, the old one until it is removed.

        It has its final name already: a signature says the name of the folder that it is of.
        """
        return self.staging / self.path.name

    @property
    def previous(self) -> Path:
        """Where the old folder waits, for a moment, on filesystems that cannot exchange."""
        return self.path.with_name(f".{self.path.name}.previous")


@contextmanager
def hold_folder(path: Path) -> Iterator[HeldFolder]:
    """Hold an output folder, which need not exist, and clear up after runs that were killed.

    Args:
        path: the folder; its parents are made.

    Yields:
        The held folder, for `replace_folder`.

    Raises:
        OutputInUseError: another run holds it.
        UsageError: it is a file, the root folder, or the place beside it cannot be written.
    """
    held = HeldFolder(path=path.resolve())
    if held.path.name == "":
        raise UsageError(f"{path} cannot be an output folder; name a folder inside it")
    if held.path.exists() and not held.path.is_dir():
        raise UsageError(f"{path} is a file; name a folder that does not exist, or a bundle")
    with _told_as_usage_error(held.path):
        held.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(held.lock, path)
    try:
        with _told_as_usage_error(held.path):
            _clear_up(held)
        yield held
    finally:
        held.lock.unlink(missing_ok=True)  # while still locked; `_lock` copes with the gap
        os.close(descriptor)


def replace_folder(
    held: HeldFolder, files: Mapping[str, bytes], *, seal: Seal | None = None
) -> None:
    """Put a folder of exactly these files in place of the held one, at one moment.

    Args:
        held: from `hold_folder`.
        files: contents by relative POSIX path.
        seal: given the folder with all files, before it is in place, gives further files.

    Raises:
        UsageError: the disk is full or the place cannot be written; the old folder is whole.
    """
    with _told_as_usage_error(held.path):
        try:
            held.staging.mkdir()
            held.partial.mkdir()
            _write(held.partial, files)
            if seal is not None:
                _write(held.partial, seal(held.partial))
            _swap(held)
        finally:
            _remove(held.staging)


def _lock(lock: Path, path: Path) -> int:
    """An open descriptor with the lock on the file that ``lock`` names now.

    Between opening and locking, the holder may have removed the file: then this lock is on a file
    that nobody else can find, and it must be tried again.
    """
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), lock.lstat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise OutputInUseError(
                f"another run is writing {path}; wait for it, or choose another output folder"
            ) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _clear_up(held: HeldFolder) -> None:
    """Finish or undo what a killed run left: only the holder of the lock may look at these."""
    if held.previous.exists() and not held.path.exists():
        held.previous.rename(held.path)
    _remove(held.previous)
    _remove(held.staging)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folders = {folder}
    for name, content in files.items():
        path = folder.joinpath(*PurePosixPath(name).parts)
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            folders.add(folder / parent)
        with path.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for each in folders:
        _sync(each)


def _swap(held: HeldFolder) -> None:
    if not held.path.exists():
        held.partial.rename(held.path)
    elif not _exchange(held.partial, held.path):
        held.path.rename(held.previous)
        try:
            held.partial.rename(held.path)
        except OSError:
            held.previous.rename(held.path)
            raise
        _remove(held.previous)
    _sync(held.path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or filesystem cannot.

    Source: rename(2), RENAME_EXCHANGE.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _remove(path: Path) -> None:
    """Remove a folder that may not be there; a link is removed itself, never followed."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _sync(folder: Path) -> None:
    """Make the entries of a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told_as_usage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}; what was there is unchanged"
        ) from error
