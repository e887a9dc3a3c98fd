"""Files that a command writes outside of a bundle: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgeclean.cli.supervisor import note_output
from edgeclean.errors import UsageError

Write = Callable[[Mapping[str, bytes]], None]
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
    from edgeclean.bundles.atomic import hold_folder, replace_folder

    note_output(path)

    with hold_folder(path) as held:
        if held.path.exists() and any(held.path.iterdir()):
            raise UsageError(f"{path} is not empty; name a folder that does not exist")
        yield lambda files: replace_folder(held, files)


def write_file(path: Path, contents: bytes) -> None:
    """Write a file beside its name and rename it; what was there is replaced at one moment.

    Raises:
        UsageError: the place cannot be written; what was there is unchanged.
    """
    write_files(path.parent, {path.name: contents}, last=None)


def write_files(folder: Path, files: Mapping[str, bytes], *, last: str | None) -> None:
    """Write files that belong together: all beside their names first, and then renamed.

    Args:
        folder: is made where there is none; what else it holds is left alone.
        files: contents by name.
        last: the file that the others are nothing without: it is removed before the first rename
            and put in place after the others, so that new files never stand beside an old one.

    Raises:
        UsageError: the place cannot be written; the line says whether something changed.
    """
    beside: dict[str, Path] = {}
    left = "what was there is unchanged"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, contents in files.items():
            with tempfile.NamedTemporaryFile(
                dir=folder, prefix=f".{name}.", delete=False
            ) as stream:
                beside[name] = Path(stream.name)
                stream.write(contents)
                stream.flush()
                os.fsync(stream.fileno())
            beside[name].chmod(0o666 & ~_umask())  # a temporary file is for its owner only
        if last is not None:
            (folder / last).unlink(missing_ok=True)
            left = f"{last} was removed, for the others may not belong to it; do it again"
        for name in sorted(files, key=lambda name: name == last):
            beside[name].replace(folder / name)
    except OSError as error:
        first = folder / next(iter(files))
        raise UsageError(f"cannot write {first}: {error.strerror}; {left}") from None
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)


@contextmanager
def no_lasting_writes() -> Iterator[None]:
    """Give libraries that make themselves a folder elsewhere one that goes again.

    Matplotlib keeps a list of fonts in the home folder, and PyTorch makes ``torchinductor_USER``
    where temporary files lie as soon as an optimiser is made. Who wants to keep these says where,
    with the libraries' own variables.

    Raises:
        UsageError: no temporary folder can be made.
    """
    missing = [name for name in FOLDER_VARIABLES if name not in os.environ]
    try:
        temporary = tempfile.TemporaryDirectory(prefix="edgeclean-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UsageError(
            f"no temporary folder can be made ({error.strerror}); set TMPDIR to a folder that can "
            "be written"
        ) from None
    with temporary as folder:
        os.environ.update({name: str(Path(folder) / name.lower()) for name in missing})
        try:
            yield
        finally:
            for name in missing:
                os.environ.pop(name, None)


def _umask() -> int:
    """Reading it means setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
