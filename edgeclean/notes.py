"""What a working process tells the one that waits for it: small notes in a file of the two.

A process that nobody waits for has no such file, and what it notes goes nowhere. It is a file and
no pipe, as a pipe that nobody reads before the end may be full, and a fleet notes much.
"""

from __future__ import annotations

import os
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

ANSWERED = "answered"
ENDED = "ended"
FOLDER = "folder"
PLACED = "placed"
# Of files that are put in place together, by the name of that replacement:
BESIDE = "beside"  # a new file, or the old one: removed at the end
MOVED = "moved"  # where an old file lies meanwhile, and its place
MADE = "made"  # the inode number of a new file, and its place, where nothing was
SETTLED = "settled"  # they stay
NOTES: ContextVar[int | None] = ContextVar("NOTES", default=None)


def note_answer() -> None:
    """Tell the parent, if there is one, that stdout has its document."""
    note(ANSWERED)


def note_end() -> None:
    """Tell the parent, if there is one, that this process came to its end, well or not."""
    note(ENDED)


def note_output(path: Path) -> None:
    """Tell the parent, if there is one, which folder will be held."""
    note(FOLDER, path)


def note_placed(path: Path) -> None:
    """Tell the parent, if there is one, that a new folder is in place and stays there."""
    note(PLACED, path)


def note(kind: str, *words: Path | str) -> None:
    """Tell the parent, if there is one: a kind, and paths or words that are not empty."""
    file = NOTES.get()
    if file is not None:
        parts = [str(one.absolute()) if isinstance(one, Path) else one for one in words]
        with suppress(OSError):  # no space for it: then the next run clears up
            os.write(file, b"\0".join(map(os.fsencode, [kind, *parts])) + b"\0\0")


def noted(file: int) -> list[list[str]]:
    """Return all that was noted in a file, in order."""
    written = os.pread(file, os.fstat(file).st_size, 0)
    whole = written.split(b"\0\0")[:-1]
    return [[os.fsdecode(part) for part in one.split(b"\0")] for one in whole]
