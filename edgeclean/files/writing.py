"""Write files outside of a bundle, whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from edgeclean.errors import UsageError
from edgeclean.files.atomic import hold_folder, not_written, replace_folder, resolved, with_parents
from edgeclean.files.mounts import refuse_mount
from edgeclean.files.reading import is_regular, open_regular
from edgeclean.files.temporary import temporary_folder
from edgeclean.notes import BESIDE, MADE, MOVED, SETTLED, note, note_output

Write = Callable[[Mapping[str, bytes]], None]
Recognise = Callable[[Path], bool]
OWN_PREFIX = ".edgeclean-"  # of files that wait beside their place
HEAD_BYTES = 4096
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


def marked(*marks: bytes) -> Recognise:
    """Return a check for whether one of these stands in the first 4096 bytes of a file."""

    def is_ours(path: Path) -> bool:
        with open_regular(path) as stream:
            beginning = stream.read(HEAD_BYTES)
        return any(mark in beginning for mark in marks)

    return is_ours


# The field producer_name, which our exporter fills and which stands near the beginning.
is_our_onnx = marked(b"\x12\x09edgeclean")


def check_place(path: Path, ours: Recognise) -> Path:
    """Check that a file can be written: what is there is this program's own, or empty.

    Returns:
        The absolute path, symbolic links followed.

    Raises:
        UsageError: something else is there, or it is a mount point.
    """
    place = resolved(path)
    try:
        status = place.stat()
        refuse_mount(place, path, "in a mounted folder")
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is no plain file, and is not replaced; choose another name")
        known = status.st_size == 0 or ours(place)
    except FileNotFoundError:
        return place
    except OSError as error:
        raise not_written(path, error) from None
    if not known:
        raise UsageError(
            f"{path} exists and was not written by this command, so it is not replaced; move it "
            "away, or choose another name"
        )
    return place


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
    run = secrets.token_hex(8)
    with ExitStack() as leftovers, ExitStack() as undo:
        try:
            beside = {}
            for path, contents in files.items():
                place = check_place(path, ours)
                leftovers.enter_context(with_parents(place))
                beside[place] = _written_beside(place, contents, leftovers, run)
            final = None if last is None else resolved(last)
            if final is not None and final.exists():
                aside = _new_name(final, leftovers, run)
                note(MOVED, run, aside, final)
                final.rename(aside)
                undo.callback(aside.replace, final)
            for place in sorted(beside, key=lambda place: place == final):
                if place.exists():
                    aside = _new_name(place, leftovers, run)
                    note(MOVED, run, aside, place)
                    _link(place, aside)
                    undo.callback(aside.replace, place)
                else:
                    note(MADE, run, str(beside[place].stat().st_ino), place)
                    undo.callback(place.unlink, missing_ok=True)
                beside[place].replace(place)
        except OSError as error:
            raise not_written(next(iter(files)), error) from None
        yield
        note(SETTLED, run)
        undo.pop_all()


def _written_beside(place: Path, contents: bytes, leftovers: ExitStack, run: str) -> Path:
    beside = _new_name(place, leftovers, run)
    with beside.open("xb") as stream:
        stream.write(contents)
        stream.flush()
        os.fsync(stream.fileno())
    return beside


def _new_name(place: Path, leftovers: ExitStack, run: str) -> Path:
    """Return a name beside a file that nobody else has."""
    aside = place.with_name(f"{OWN_PREFIX}{secrets.token_hex(8)}")
    note(BESIDE, run, aside)
    leftovers.callback(aside.unlink, missing_ok=True)
    return aside


def _link(place: Path, aside: Path) -> None:
    """Give a file a second name; on filesystems without, its only one for a moment."""
    try:
        os.link(place, aside)
    except OSError:
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
