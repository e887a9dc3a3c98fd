"""What is done for a run that was killed, by the process that waited for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgeclean.files.atomic import clear_up_after, is_placed
from edgeclean.notes import FOLDER, PLACED


def clear_up(notes: Sequence[Sequence[str]]) -> bool:
    """Undo what the run did or, where it had begun to be done with what was there, finish it.

    All of a run's outputs are in their places before it is done with any old one, so that here
    either all of them stay or none.

    Args:
        notes: what the run told (`edgeclean.notes`), in order.

    Returns:
        Whether what it writes is in place.
    """
    folders = [Path(one[1]) for one in notes if one[0] == FOLDER]
    placed = any(one[0] == PLACED for one in notes) or any(map(is_placed, folders))
    for folder in folders:
        clear_up_after(folder, keep_new=placed)
    return placed
