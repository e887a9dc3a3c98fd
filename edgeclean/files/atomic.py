"""A folder that appears whole or not at all, and that only one run writes.

A run holds the output from its start to its end (`hold_folder`), so that a second one is refused
before it has worked for minutes. At the end `replace_folder` writes everything beside the output,
on the same filesystem, flushes it to the disk, and exchanges the two in one system call. Killed at
any moment, a run leaves the old folder or the new one; what it left beside, the next run removes.
On a filesystem that cannot exchange, a run killed between two renames leaves the old folder beside
its place, and the next run puts it back.

What is beside is one folder, ``.edgeclean-`` and a hash of the output's name, with a lock in it. It
is made before anything is put into it and goes after everything else of it, so that a folder of
that name with something in it but no lock is somebody else's: it is refused, never removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeclean.errors import EdgecleanError, OutputInUseError, UsageError
from edgeclean.files.mounts import refuse_mount

AT_FDCWD = -100  # linux/fcntl.h
RENAME_EXCHANGE = 2  # linux/fs.h

Seal = Callable[[Path], Mapping[str, bytes]]
Refuse = Callable[[Path, Path], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldFolder:
    """An output folder that no other run may write while this value is in use.

    Attributes:
        path: absolute, symbolic links resolved: what is replaced is the folder itself.
        named: the path as the user named it.
        refuse: takes a folder and its path as the user named it; raises where it may not be
            replaced.
    """

    path: Path
    named: Path
    refuse: Refuse

    @property
    def staging(self) -> Path:
        """The folder of everything that a run writes until it is in place, and of the lock."""
        return self.path.with_name(staging_name(self.path.name))

    @property
    def lock(self) -> Path:
        """The file whose lock marks the folder as held."""
        return self.staging / "lock"

    @property
    def partial(self) -> Path:
        """The place of the new folder; after an exchange, of the old one until it is removed.

        It has its final name already: a signature holds the name of the folder that it is of.
        """
        return self.staging / "new" / self.path.name

    @property
    def previous(self) -> Path:
        """The place of the old folder, for a moment, on filesystems that cannot exchange."""
        return self.staging / "old"


def staging_name(name: str) -> str:
    """Return the name of what lies beside an output folder of this name while it is held."""
    return f".edgeclean-{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}"


def refuse_filled(_folder: Path, named: Path) -> None:
    """Replace no folder but an empty one."""
    raise UsageError(f"{named} is not empty; name a folder that does not exist")


@contextmanager
def hold_folder(
    path: Path, refuse: Refuse = refuse_filled, *, replaced: bool = True
) -> Iterator[HeldFolder]:
    """Hold an output folder, which need not exist, and clear up after runs that were killed.

    Args:
        path: the folder; its parents are made.
        refuse: takes a folder and its path as the user named it; raises where somebody would lose
            something if it were replaced. It is asked now, and twice where the folder is replaced:
            minutes pass in between.
        replaced: whether the folder itself will be replaced, which a mount point cannot be.

    Yields:
        The held folder, for `replace_folder`.

    Raises:
        OutputInUseError: another run holds it.
        UsageError: it is a file, the root folder, a mount point, a loop of links, or the place
            beside it cannot be written or is somebody else's; or whatever ``refuse`` raises.
    """
    held = HeldFolder(path=resolved(path), named=path, refuse=refuse)
    if held.path.name == "":
        raise UsageError(f"{path} cannot be an output folder; name a folder inside it")
    with _raising_usage_errors(held.path):
        if os.path.lexists(held.path) and not held.path.is_dir():
            raise UsageError(f"{path} is a file; name a folder that does not exist, or a bundle")
        if replaced:
            refuse_mount(held.path, path, "inside it")
        held.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(held)
    try:
        with _raising_usage_errors(held.path):
            _clear_up(held)
        _refuse_loss(held, held.path)
        yield held
    finally:
        # Whatever cannot be removed, the next run removes. The lock goes last, while it is still
        # locked; `_lock` copes with the gap.
        with suppress(OSError):
            _clear_up(held)
            held.lock.unlink()
            held.staging.rmdir()
        os.close(descriptor)


def replace_folder(
    held: HeldFolder,
    files: Mapping[str, bytes],
    *,
    seal: Seal | None = None,
    alongside: AbstractContextManager[None] | None = None,
) -> dict[str, int]:
    """Put a folder of exactly these files in place of the held one, at one moment.

    Args:
        held: the folder of `hold_folder`.
        files: contents by relative POSIX path.
        seal: takes the folder with all files, before it is in place, and returns further files.
        alongside: entered when all else is done and left when the folder is in place; if that
            fails, it is left with the error, and undoes what it did.

    Returns:
        The size of every file, by name.

    Raises:
        UsageError: the disk is full or the place cannot be written, or the old folder may not be
            replaced; the old folder is whole.
    """
    sizes = {name: len(content) for name, content in files.items()}
    try:
        with _raising_usage_errors(held.path):
            held.partial.mkdir(parents=True)
            _write(held.partial, files)
            if seal is not None:
                further = seal(held.partial)
                _write(held.partial, further)
                sizes |= {name: len(content) for name, content in further.items()}
            _refuse_loss(held, held.path)
            with alongside or nullcontext():
                _swap(held)
    finally:
        with suppress(OSError):  # it is in place, or not: what is left beside it changes nothing
            _clear_up(held)
    return dict(sorted(sizes.items()))


def clear_up_after(path: Path) -> None:
    """Do for an output folder whose run was killed what the next run would; nothing is replaced.

    What cannot be cleared up stays as it is.
    """
    with suppress(EdgecleanError, OSError):
        place = path.resolve()
        if place.with_name(staging_name(place.name)).exists():
            with hold_folder(path, refuse=lambda _folder, _named: None):
                pass


def resolved(path: Path) -> Path:
    """Return the absolute path without symbolic links; what it names need not exist.

    Raises:
        UsageError: its links lead round in a loop, or no file can have that name.
    """
    try:
        found = path.resolve()
        loop = found.is_symlink()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # which of the two, or neither, is Python's version's choice
        loop = True
    if loop:
        raise UsageError(
            f"{path} is a loop of symbolic links, or cannot be looked up; name another"
        )
    return found


def _lock(held: HeldFolder) -> int:
    """Return an open descriptor with the lock on the file that ``held.lock`` names now.

    Between opening and locking, the holder may have removed the file: then this lock is on a file
    that nobody else can find, and the loop retries.
    """
    while True:
        with suppress(FileExistsError):
            held.staging.mkdir()
        _refuse_not_ours(held)
        try:
            descriptor = os.open(
                held.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
            )
        except FileNotFoundError:  # the holder has just removed the folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), held.lock.lstat()):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise OutputInUseError(
                f"another run is writing {held.named}; wait for it, or choose another output folder"
            ) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _refuse_not_ours(held: HeldFolder) -> None:
    """Refuse what lies where only we put something, and is not as we make it."""
    try:
        status = held.staging.lstat()
        names = {""}
        if stat.S_ISDIR(status.st_mode):
            names = {entry.name for entry in held.staging.iterdir()}
        ours = not names or ("lock" in names and stat.S_ISREG(held.lock.lstat().st_mode))
    except FileNotFoundError:  # the holder has just removed it
        return
    if not ours or not names <= {"lock", "new", "old"}:
        raise UsageError(
            f"{held.staging} lies where edgeclean writes {held.named} before it is in place, and "
            "is not its own; move it away, or choose another output folder"
        )


def _refuse_loss(held: HeldFolder, folder: Path) -> None:
    """Refuse a folder that may not be replaced; nothing is lost with an empty or missing one."""
    with _raising_usage_errors(held.path):
        if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
            return
    held.refuse(folder, held.named)


def _clear_up(held: HeldFolder) -> None:
    """Finish or undo what a killed run left: only the holder of the lock may do so."""
    if held.previous.exists() and not held.path.exists():
        held.previous.rename(held.path)
    _remove(held.previous)
    _remove(held.partial.parent)


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
    """Put the new folder in place; if anything is wrong then, put the old one back."""
    was_there = os.path.lexists(held.path)
    if not was_there:
        old = None
        held.partial.rename(held.path)
    elif _exchange(held.partial, held.path):
        old = held.partial
    else:
        old = held.previous
        held.path.rename(old)
        try:
            held.partial.rename(held.path)
        except OSError:
            old.rename(held.path)
            raise
    try:
        if old is not None:  # nobody finds it here: what it holds now is what will be removed
            _refuse_loss(held, old)
        _sync(held.path.parent)
    except BaseException:
        _put_back(held, old)
        raise


def _put_back(held: HeldFolder, old: Path | None) -> None:
    if old in (None, held.previous):
        held.path.rename(held.staging / "new" / "refused")
        if old is not None:
            old.rename(held.path)
    else:
        _exchange(held.partial, held.path)


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
def _raising_usage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}; what was there is unchanged"
        ) from error
