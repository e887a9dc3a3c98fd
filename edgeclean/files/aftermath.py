"""What is done for a run that was killed, by the process that waited for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edgeclean.files.atomic import clear_up_after, is_placed
from edgeclean.notes import BESIDE, FOLDER, MADE, MOVED, PLACED, SETTLED

FILES_STEPS = (BESIDE, MOVED, MADE)
Notes = Sequence[Sequence[str]]


def clear_up(notes: Notes) -> bool:
    """Undo what the run did or, where it had begun to be done with what was there, finish it.

    All of a run's outputs are in their places before it is done with any old one, so that here
    either all of them stay or none. Whatever cannot be done stays as it is.

    Args:
        notes: what the run told (`edgeclean.notes`), in order.

    Returns:
        Whether what it writes is in place.
    """
    folders = [Path(one[1]) for one in notes if one[0] == FOLDER]
    placed = any(one[0] == PLACED for one in notes) or any(map(is_placed, folders))
    for folder in folders:
        clear_up_after(folder, keep_new=placed)
    settled = {one[1] for one in notes if one[0] == SETTLED}
    steps = [one for one in notes if one[0] in FILES_STEPS and one[1] not in settled]
    needed = set() if placed else _undone(steps)
    for beside in (one[2] for one in notes if one[0] == BESIDE):
        if beside not in needed:
            with suppress(OSError):
                Path(beside).unlink(missing_ok=True)
    return placed or bool(settled)


def _undone(steps: Notes) -> set[str]:
    """Undo steps that were noted, and perhaps done; the old files that could not be put back."""
    needed = set()
    for kind, _, first, *rest in reversed(steps):
        try:
            if kind == MOVED and os.path.lexists(first):
                Path(first).replace(rest[0])
            elif kind == MADE and str(Path(rest[0]).lstat().st_ino) == first:
                Path(rest[0]).unlink()
        except FileNotFoundError:
            continue
        except OSError:
            needed.add(first)
    return needed
