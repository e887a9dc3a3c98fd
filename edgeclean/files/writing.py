"""Write files outside of a bundle, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path

from edgeclean.errors import UsageError
from edgeclean.files.atomic import (
    exchange,
    hold_folder,
    not_written,
    replace_folder,
    resolved,
    staging_name,
    with_parents,
)
from edgeclean.files.flushed import close_as
from edgeclean.files.mounts import refuse_mount
from edgeclean.files.reading import is_regular, open_regular
from edgeclean.files.temporary import temporary_folder
from edgeclean.notes import BESIDE, MADE, MOVED, SETTLED, note, note_output

Write = Callable[[Mapping[str, bytes]], None]
Recognise = Callable[[Path], bool]
_Seen = tuple[int, ...]
NEW, OLD = "new", "old"  # in the names of files that wait beside their place
MOST_ENTRIES = 100_000  # of a folder, that are looked at for what killed runs left
HEAD_BYTES = 4096
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # as on FAT
MANIFEST_BYTES = 1 << 20  # the format stands before what can be long
FOLDER_VARIABLES = ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR")


@contextmanager
def new_folder(path: Path | None) -> Iterator[Write]:
    """Hold a folder that does not exist yet (or is empty); nothing is written where it is None.

    Raises:
        UsageError: it holds something, or cannot be written.
        OutputInUseError: another run holds it.
    """
    if path is None:
        yield lambda files: None
        return
    note_output(path)
    with hold_folder(path) as held:

        def write(files: Mapping[str, bytes]) -> None:
            replace_folder(held, files)

        yield write


def keep_apart(
    inputs: Iterable[Path | None], *, files: Iterable[Path | None] = (), folder: Path | None = None
) -> None:
    """Refuse outputs that are, hold or lie in what a command reads, by whatever name they go.

    Args:
        inputs: files and folders that are read; None for what was not given.
        files: files that are written; None for none.
        folder: a folder that is written and holds nothing else.

    Raises:
        UsageError: an input would be replaced, or an output would lie in an input or in a bundle.
    """
    given = [read for read in inputs if read is not None]
    outputs = [file for file in files if file is not None]
    written = [resolved(file) for file in outputs]
    if folder is not None:
        outputs.append(folder)
        written.append(resolved(folder))
    for name, output in zip(outputs, written, strict=True):
        whole = next((above for above in output.parents if _is_bundle(above)), None)
        if whole is not None:
            raise UsageError(
                f"{name} lies in the bundle {whole}, which holds nothing but its own files; choose "
                "a place outside of it"
            )
        for read in given:
            place = Path(os.path.realpath(read))
            if _within(output, place) or (name is folder and _within(place, output)):
                raise UsageError(
                    f"{name} would be written, and {read} is read: one is the other, or lies in "
                    "it; choose another output"
                )


def beginning(form: bytes) -> Recognise:
    """Return a check for whether a file begins in this form, a regular expression.

    A file that merely names a mark of ours further down is somebody else's.
    """
    pattern = re.compile(form, re.DOTALL)

    def is_ours(path: Path) -> bool:
        with open_regular(path) as stream:
            return pattern.match(stream.read(HEAD_BYTES)) is not None

    return is_ours


# The version of the format, and who wrote it: the first two fields, which our exporter fills.
is_our_onnx = beginning(rb"\x08[\x00-\x7f]\x12\x09edgeclean")


def check_place(path: Path, ours: Recognise) -> Path:
    """Check that a file can be written: what is there is this program's own, or empty.

    Returns:
        The absolute path, symbolic links followed.

    Raises:
        UsageError: something else is there, or it is a mount point.
    """
    return _looked_at(path, ours)[0]


def _looked_at(path: Path, ours: Recognise) -> tuple[Path, _Seen | None]:
    """Do as `check_place`; return as well which file was seen there, None for none."""
    place = resolved(path)
    try:
        status = place.stat()
        refuse_mount(place, path, "in a mounted folder")
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is no plain file, and is not replaced; choose another name")
        known = status.st_size == 0 or ours(place)
    except FileNotFoundError:
        return place, None
    except OSError as error:
        raise not_written(path, error) from None
    if not known:
        raise _not_ours(path)
    return place, _seen(status)


def _seen(status: os.stat_result) -> _Seen:
    """Return what tells a file from another one, and from itself with other contents."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _not_ours(path: Path) -> UsageError:
    return UsageError(
        f"{path} exists and was not written by this command, so it is not replaced; move it "
        "away, or choose another name"
    )


def check_folder(path: Path, option: str) -> None:
    """Check that what is written into is a folder, or is not there yet.

    Raises:
        UsageError: it is something else, or no folder can be there.
    """
    try:
        reason = "" if stat.S_ISDIR(resolved(path).stat().st_mode) else os.strerror(errno.ENOTDIR)
    except FileNotFoundError:
        return
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise UsageError(f"{option} {path} is no folder ({reason}); name another, or none")


def write_file(path: Path, contents: bytes, *, ours: Recognise) -> None:
    """Write a file beside its name and rename it; what was there is replaced at one moment.

    Raises:
        UsageError: the place cannot be written, or holds what is not ``ours``; what was there is
            unchanged.
    """
    with in_place({path: contents}, ours=ours):
        pass


@contextmanager
def in_place(
    files: Mapping[Path, bytes], *, ours: Recognise, last: Path | None = None
) -> Iterator[None]:
    """Put files in place that belong together, and put back what was there if what follows fails.

    Each step is noted before it is done, so that a parent can do the same for a process that is
    killed.

    Args:
        files: contents by path; parents are made, and what else they hold is left alone.
        ours: whether an existing file may be replaced.
        last: the file that the others are nothing without: it is moved away before the first
            rename and put in place after the others, so that new files never stand beside an old
            one, not even when the run is killed.

    Raises:
        UsageError: a place cannot be written, or holds what is not ours; what was there is
            unchanged.
    """
    with ExitStack() as leftovers, ExitStack() as undo:
        one = _Replacement(ours, leftovers, undo)
        try:
            beside = {path: one.written_beside(path, contents) for path, contents in files.items()}
            if last is not None:
                one.move_away(last)
            for path in sorted(beside, key=lambda path: path == last):
                one.put(path, beside[path])
        except OSError as error:
            raise not_written(next(iter(files)), error) from None
        yield
        note(SETTLED, one.run)
        undo.pop_all()


class _Replacement:
    """The files of one `in_place`: what lies beside them meanwhile, and how they are put back.

    What is at a place may change while new files are written. So what came away from there is
    compared with what was looked at, before it is removed.
    """

    def __init__(self, ours: Recognise, leftovers: ExitStack, undo: ExitStack) -> None:
        self.run = secrets.token_hex(8)
        self._ours, self._leftovers, self._undo = ours, leftovers, undo
        self._found: dict[Path, _Seen | None] = {}

    def written_beside(self, path: Path, contents: bytes) -> Path:
        """Write a new file beside its place, and remove what killed runs left there."""
        _remove_left(check_place(path, self._ours))
        place, self._found[path] = _looked_at(path, self._ours)
        self._leftovers.enter_context(with_parents(place))
        beside = self._new_name(place, NEW)
        stream = self._leftovers.enter_context(beside.open("xb"))
        _try_lock(stream.fileno())  # until the end: it is no killed run's
        close_as(stream.fileno(), place)
        stream.write(contents)
        stream.flush()
        os.fsync(stream.fileno())
        return beside

    def move_away(self, path: Path) -> None:
        """Move what is at a place aside, if something is."""
        place, seen = self._look_again(path)
        if seen is not None:
            aside = self._aside(place, None)
            place.rename(aside)
            _refuse_another(aside, seen, path)
            self._found[path] = None

    def put(self, path: Path, beside: Path) -> None:
        """Put a new file in its place, instead of what is ours there or of nothing."""
        place, seen = self._look_again(path)
        new = beside.stat().st_ino
        if seen is not None:
            aside = self._aside(place, new)
            _link(place, aside)
            _refuse_another(aside, seen, path)
        if seen is None or not os.path.lexists(place):
            note(MADE, self.run, str(new), place)
            self._undo.callback(_unmade, place, new)
            _fill_gap(beside, place, path)
        elif not exchange(beside, place):
            beside.replace(place)
        elif _seen(beside.lstat()) != seen:
            exchange(beside, place)
            raise _not_ours(path)

    def _look_again(self, path: Path) -> tuple[Path, _Seen | None]:
        """Return what is at a place now; what has changed since must be ours as well."""
        place, seen = resolved(path), self._found[path]
        try:
            now = _seen(place.lstat())
        except FileNotFoundError:
            return place, None
        return (place, seen) if now == seen else _looked_at(path, self._ours)

    def _aside(self, place: Path, new: int | None) -> Path:
        """Return the name that an old file gets, locked and noted before it has it.

        Args:
            place: where it is.
            new: the inode number of what takes its place; None where nothing does yet.
        """
        aside = self._new_name(place, OLD)
        _try_lock(self._leftovers.enter_context(open_regular(place)).fileno())
        note(MOVED, self.run, aside, place)
        self._undo.callback(_back, aside, place, new)
        return aside

    def _new_name(self, place: Path, kind: str) -> Path:
        """Return a name beside a file that nobody else has."""
        name = f"{_left_prefix(place)}{kind}-{secrets.token_hex(8)}"
        aside = place.with_name(name)
        note(BESIDE, self.run, aside)
        self._leftovers.callback(aside.unlink, missing_ok=True)
        return aside


def _refuse_another(aside: Path, seen: _Seen, named: Path) -> None:
    """Refuse a file that is not the one that was looked at; what is undone puts it back."""
    if _seen(aside.lstat()) != seen:
        raise _not_ours(named)


def _fill_gap(beside: Path, place: Path, named: Path) -> None:
    """Give a new file its name where there is nothing, and refuse where something is by now."""
    try:
        os.link(beside, place)
    except FileExistsError:
        raise _not_ours(named) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(place):
            raise _not_ours(named) from None
        beside.rename(place)


def _back(aside: Path, place: Path, new: int | None) -> None:
    """Put an old file back, in place of the new one or of nothing, and of nobody else's."""
    with suppress(FileNotFoundError):
        if not os.path.lexists(place) or place.lstat().st_ino == new:
            aside.replace(place)


def _unmade(place: Path, inode: int) -> None:
    """Remove a new file, and nothing that somebody put there since."""
    with suppress(FileNotFoundError):
        if place.lstat().st_ino == inode:
            place.unlink()


def _left_prefix(place: Path) -> str:
    """Return what the names begin with of all that waits beside a file."""
    return f"{staging_name(place.name)}-"


def _remove_left(place: Path) -> None:
    """Remove what waits beside a file for a run that was killed: nobody holds a lock on it.

    An old file that was moved away goes back where nothing stands in its place.
    """
    prefix = _left_prefix(place)
    with suppress(OSError), os.scandir(place.parent) as entries:
        names = [one.name for one in islice(entries, MOST_ENTRIES) if one.name.startswith(prefix)]
        for name in names:
            with suppress(OSError):
                _remove_if_left(place.with_name(name), place)


def _remove_if_left(aside: Path, place: Path) -> None:
    status = aside.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return
    with open_regular(aside) as stream:
        if not _try_lock(stream.fileno()):
            return
        if aside.name.startswith(f"{_left_prefix(place)}{OLD}-") and not os.path.lexists(place):
            aside.rename(place)
        else:
            aside.unlink()


def _try_lock(descriptor: int) -> bool:
    """Lock a file until it is closed; False where another process does, or none can."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _link(place: Path, aside: Path) -> None:
    """Give a file a second name; on filesystems without, its only one for a moment."""
    try:
        os.link(place, aside)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        place.rename(aside)


def _is_bundle(folder: Path) -> bool:
    """Return whether a folder is a bundle, be it whole or not."""
    try:
        manifest = folder / "manifest.json"
        if not is_regular(folder / "SHA256SUMS"):
            return False
        with open_regular(manifest) as stream:
            return b'"format": "edgeclean-bundle"' in stream.read(MANIFEST_BYTES)
    except OSError:
        return False


def _within(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder (or file) or lies in it, under any name that it has."""
    try:
        status = folder.stat()
    except OSError:
        return path.is_relative_to(folder)
    for above in (path, *path.parents):
        with suppress(OSError):
            if os.path.samestat(above.stat(), status):
                return True
    return False


@contextmanager
def no_lasting_writes() -> Iterator[None]:
    """Give libraries that make a folder of their own a temporary one, and remove it.

    Matplotlib keeps a list of fonts in the home folder, and PyTorch makes ``torchinductor_USER``
    where temporary files lie as soon as an optimiser is made. To keep these, set the
    libraries' own variables.

    Raises:
        UsageError: no temporary folder can be made.
    """
    missing = [name for name in FOLDER_VARIABLES if name not in os.environ]
    with ExitStack() as end:
        try:
            folder = end.enter_context(temporary_folder("edgeclean-"))
        except OSError as error:
            raise UsageError(
                f"no temporary folder can be made ({error.strerror}); set TMPDIR to a folder that "
                "can be written"
            ) from None
        os.environ.update({name: str(folder / name.lower()) for name in missing})
        try:
            yield
        finally:
            for name in missing:
                os.environ.pop(name, None)
