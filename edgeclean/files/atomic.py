"""A folder that appears whole or not at all, and that only one run writes.

A run holds the output from its start to its end (`hold_folder`), so that a second one is refused
before it has worked for minutes. At the end `replace_folder` writes everything beside the output,
on the same filesystem, flushes it to the disk, and exchanges the two in one system call. Killed at
any moment, a run leaves the old folder or the new one; what it left beside, the next run removes.
Somebody may have put a file into the old folder just before the exchange, so it is looked at once
more after it. Until then a mark says that what lies beside is the old one and unchecked: a run that
is killed here loses nothing either, for the next one looks at it and may put it back.
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
from pathlib import Path

from edgeclean.errors import EdgecleanError, OutputInUseError, UsageError
from edgeclean.files.flushed import sync, write_files
from edgeclean.files.mounts import refuse_mount
from edgeclean.notes import note_placed

AT_FDCWD = -100  # linux/fcntl.h
RENAME_EXCHANGE = 2  # linux/fs.h
FULL = (errno.ENOSPC, errno.EDQUOT)
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
    def unchecked(self) -> Path:
        """The mark of a folder that is about to be, or is, exchanged; the old is still needed.

        It holds the inode number of the new folder, which tells the two apart wherever they are.
        """
        return self.staging / "unchecked"

    @property
    def checked(self) -> Path:
        """The same mark when the old folder is no longer needed: the new one stays in place."""
        return self.staging / "checked"

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
    with with_parents(held.path):
        with _raising_usage_errors(held.path):
            descriptor = _lock(held)
        try:
            with _raising_usage_errors(held.path):
                _clear_up(held)
            _refuse_loss(held, held.path)
            yield held
        finally:
            _let_go(held, descriptor)


@contextmanager
def with_parents(place: Path) -> Iterator[None]:
    """Make the parents of a place; what of them was not there goes again if what follows fails."""
    made: list[Path] = []
    try:
        with _raising_usage_errors(place):
            for one in reversed([one for one in place.parents if not os.path.lexists(one)]):
                with suppress(FileExistsError):  # by somebody else, meanwhile
                    one.mkdir()
                    made.append(one)
        yield
    except BaseException:
        for one in reversed(made):  # one that holds anything by now stays
            with suppress(OSError):
                one.rmdir()
        raise


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
    try:
        with folder_in_place(held, files, seal=seal, alongside=alongside) as sizes:
            pass
    finally:
        with suppress(EdgecleanError, OSError):  # it is in place, or not: what is beside it, waits
            _clear_up(held)
    return sizes


@contextmanager
def folder_in_place(
    held: HeldFolder,
    files: Mapping[str, bytes],
    *,
    seal: Seal | None = None,
    alongside: AbstractContextManager[None] | None = None,
) -> Iterator[dict[str, int]]:
    """Do as `replace_folder`, and put the old folder back if what follows fails.

    What is beside is cleared up by `hold_folder`: until all of several folders are in place, each
    old one is needed.

    Yields:
        The size of every file, by name.

    Raises:
        UsageError: as `replace_folder` does.
    """
    sizes = {name: len(content) for name, content in files.items()}
    with _raising_usage_errors(held.path):
        held.partial.mkdir(parents=True)
        write_files(held.partial, files, instead_of=held.path)
        if seal is not None:
            further = seal(held.partial)
            write_files(held.partial, further, instead_of=held.path)
            sizes |= {name: len(content) for name, content in further.items()}
        _refuse_loss(held, held.path)
        with alongside or nullcontext(), _swapped(held):
            yield dict(sorted(sizes.items()))


def clear_up_after(path: Path, *, keep_new: bool = False) -> None:
    """Clear up for a run that was killed while it held an output folder.

    What cannot be cleared up stays as it is, for the next run.

    Args:
        path: the output folder.
        keep_new: whether a new folder that is in place stays there; else, unless the run had done
            with the old one, that is put back.
    """
    with suppress(EdgecleanError, OSError):
        held = HeldFolder(path=path.resolve(), named=path, refuse=refuse_filled)
        if not held.staging.exists():
            return
        descriptor = _lock(held)
        try:
            if keep_new:
                held.unchecked.unlink(missing_ok=True)
            _clear_up(held, look=_refuse_any)
        finally:
            _let_go(held, descriptor)


def is_placed(path: Path) -> bool:
    """Return whether a run that was killed had its new folder in place, and done with the old."""
    with suppress(OSError, RuntimeError):
        place = path.resolve()
        return (place.with_name(staging_name(place.name)) / "checked").exists()
    return False


def resolved(path: Path) -> Path:
    """Return the absolute path without symbolic links; what it names need not exist.

    Raises:
        UsageError: its links lead round in a loop, or no file can have that name.
    """
    reason = "it is a loop of symbolic links"
    try:
        found = path.resolve()
        if not found.is_symlink():
            return found
    except OSError as error:
        reason = error.strerror or reason
    except (RuntimeError, ValueError) as error:  # of a loop; of a name with a zero byte
        reason = reason if isinstance(error, RuntimeError) else str(error)
    raise UsageError(f"{path} cannot be looked up ({reason}); name another")


def not_written(path: Path, error: OSError) -> UsageError:
    """Return what is raised where a place cannot be written."""
    room = "; make room and run the same command again" if error.errno in FULL else ""
    why = f"{error.strerror or error}; what was there is unchanged{room}"
    return UsageError(f"cannot write {path}: {why}")


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
                f"another run is writing {held.named}; wait until it has ended, and run the same "
                "command again"
            ) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _let_go(held: HeldFolder, descriptor: int) -> None:
    """Clear up and remove the lock last, while it is still locked; `_lock` copes with the gap."""
    with suppress(EdgecleanError, OSError):  # what cannot be removed, the next run removes
        _clear_up(held)
        held.lock.unlink()
        held.staging.rmdir()
    os.close(descriptor)


def _refuse_not_ours(held: HeldFolder) -> None:
    """Refuse what lies where only we put something, and is not as we make it."""
    try:
        status = held.staging.lstat()
        names = {""}
        if stat.S_ISDIR(status.st_mode):
            names = {entry.name for entry in held.staging.iterdir()}
        plain = {held.lock, held.unchecked, held.checked}
        ours = not names or "lock" in names
        ours &= all(stat.S_ISREG(one.lstat().st_mode) for one in plain if one.name in names)
    except FileNotFoundError:  # the holder has just removed it
        return
    if not ours or not names <= {"lock", "new", "old", "unchecked", "checked"}:
        raise UsageError(
            f"{held.staging} lies where edgeclean writes {held.named} before it is in place, and "
            "is not its own; move it away, and run the same command again"
        )


def _refuse_loss(held: HeldFolder, folder: Path | None) -> None:
    """Refuse a folder that may not be replaced; nothing is lost with an empty or missing one."""
    if folder is None:
        return
    with _raising_usage_errors(held.path):
        if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
            return
    held.refuse(folder, held.named)


def _refuse_any(held: HeldFolder, _folder: Path | None) -> None:
    raise UsageError(f"{held.named} is put back as it was")


def _clear_up(
    held: HeldFolder, look: Callable[[HeldFolder, Path | None], None] = _refuse_loss
) -> None:
    """Finish or undo what a killed run left: only the holder of the lock may do so.

    Args:
        held: the folder.
        look: raises where the old folder, if there was one, must not be lost with what else lies
            beside. Then it is put back.
    """
    if held.previous.exists() and not held.path.exists():
        held.previous.rename(held.path)
    _settle(held, look)
    _remove(held.previous)
    _remove(held.partial.parent)
    _remove(held.unchecked)
    _remove(held.checked)


def _settle(held: HeldFolder, look: Callable[[HeldFolder, Path | None], None]) -> None:
    """Look at an old folder that nobody has looked at since the exchange, and put back what stays.

    A mark that is not whole was being written, which is before the exchange.
    """
    try:
        new = int(held.unchecked.read_bytes())
    except (FileNotFoundError, ValueError):
        return
    if held.partial.exists() and held.partial.lstat().st_ino == new:
        return
    beside = [folder for folder in (held.previous, held.partial) if folder.exists()]
    old = beside[0] if beside else None
    try:
        look(held, old)
    except (EdgecleanError, OSError):
        _put_back(held, old, new)


@contextmanager
def _swapped(held: HeldFolder) -> Iterator[None]:
    """Put the new folder in place; if anything is wrong then, or later, put the old one back."""
    new = held.partial.stat().st_ino
    mark = {held.unchecked.name: str(new).encode()}
    write_files(held.staging, mark, instead_of=held.staging)
    old = _moved_in(held)
    try:
        _refuse_loss(held, old)  # nobody finds it here: what it holds now is what will be removed
        sync(held.path.parent)
        yield
    except BaseException:
        _put_back(held, old, new)
        raise
    with suppress(OSError):  # then the old one is looked at once more
        held.unchecked.rename(held.checked)
    note_placed(held.path)


def _moved_in(held: HeldFolder) -> Path | None:
    """Move the new folder into its place; where the old one lies now, if there was one."""
    if not os.path.lexists(held.path):
        held.partial.rename(held.path)
        return None
    if exchange(held.partial, held.path):
        return held.partial
    held.path.rename(held.previous)
    try:
        held.partial.rename(held.path)
    except OSError:
        held.previous.rename(held.path)
        raise
    return held.previous


def _put_back(held: HeldFolder, old: Path | None, new: int) -> None:
    """Take the new folder, known by its inode number, out of its place; the old one goes there."""
    if not os.path.lexists(held.path):
        if old is not None:
            old.rename(held.path)
    elif held.path.lstat().st_ino != new:
        if old is not None:
            raise UsageError(
                f"{old} is what was at {held.named} before a run was ended; move one of the two"
            )
    elif old == held.partial:
        exchange(held.partial, held.path)
    else:
        held.path.rename(held.staging / "new" / "refused")
        if old is not None:
            old.rename(held.path)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two folders or files in one step; False where the system or filesystem cannot.

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


@contextmanager
def _raising_usage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from error
