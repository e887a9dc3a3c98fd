"""Files that a command writes outside of a bundle: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgeclean.errors import UsageError

Write = Callable[[Mapping[str, bytes]], None]


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

    with hold_folder(path) as held:
        if held.path.exists() and any(held.path.iterdir()):
            raise UsageError(f"{path} is not empty; name a folder that does not exist")
        yield lambda files: replace_folder(held, files)


def write_file(path: Path, contents: bytes) -> None:
    """Write a file beside its name and rename it; what was there is replaced at one moment.

    Raises:
        UsageError: the place cannot be written; what was there is unchanged.
    """
    beside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as stream:
            beside = Path(stream.name)
            stream.write(contents)
            stream.flush()
            os.fsync(stream.fileno())
        beside.chmod(0o666 & ~_umask())  # a temporary file is for its owner only
        beside.replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}; what was there is unchanged"
        ) from None
    finally:
        if beside is not None:
            beside.unlink(missing_ok=True)


def _umask() -> int:
    """Reading it means setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
