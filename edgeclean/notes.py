"""What a working process tells the one that waits for it: small notes through a pipe.

A process that nobody waits for has no pipe, and what it notes goes nowhere.
"""

from __future__ import annotations

import os
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

ANSWERED = "answered"
PIPE: ContextVar[int | None] = ContextVar("PIPE", default=None)


def note_answer() -> None:
    """Tell the parent, if there is one, that stdout has its document."""
    _note(ANSWERED)


def note_output(path: Path) -> None:
    """Tell the parent, if there is one, which folder will be held."""
    _note(str(path.absolute()))


def _note(text: str) -> None:
    pipe = PIPE.get()
    if pipe is not None:
        with suppress(OSError):  # the parent is gone: there is nobody to tell
            os.write(pipe, os.fsencode(text) + b"\0")
