"""Say in words what an unknown name was probably meant to be, without guesses that are far off."""

from __future__ import annotations

import difflib
from collections.abc import Collection

CLOSE = 0.6  # of difflib's ratio: what is less alike is another word
MOST_LISTED = 12
MOST_COMPARED = 80  # characters: what is compared takes time by the square of its length


def nearest_or_known(name: str, known: Collection[str], *, otherwise: str) -> str:
    """Return which known names are near to this one, or else all of them, or where they are listed.

    Args:
        name: the unknown name, of any length.
        known: the names that there are.
        otherwise: what to say where none is near and they are more than a dozen.
    """
    near = difflib.get_close_matches(name[:MOST_COMPARED], known, n=3, cutoff=CLOSE)
    if near:
        return f"nearest: {', '.join(near)}"
    return f"known: {', '.join(known)}" if len(known) <= MOST_LISTED else otherwise
