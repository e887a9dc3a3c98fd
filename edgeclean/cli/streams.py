"""The streams stdout and stderr may be closed, full, or read by a program that stopped reading.

Without this, Python ends with exit code 120 when what it still holds back cannot be written, or
with a traceback. What is lost of stdout is an error; of stderr, which would have to tell of it,
nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from edgeclean.errors import AnswerLostError


@contextmanager
def safe_streams() -> Iterator[None]:
    """Within, what cannot be written to stdout raises `AnswerLostError`, on stderr nothing does.

    Lastly stdout is flushed, whatever was raised; if that fails, it is too late to say so.
    """
    _open_closed()
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Stream(kept[0], _lost), _Stream(kept[1], lambda _error: None)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AnswerLostError):
                stream.flush()
        sys.stdout, sys.stderr = kept


def _lost(error: OSError) -> None:
    raise AnswerLostError(
        f"the answer cannot be written to stdout ({error.strerror}); what the command made beside "
        "it is in place"
    ) from None


def _open_closed() -> None:
    """Fill the places of closed streams, or the next file that is opened would become one."""
    for number, how in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, how)  # the lowest free number; what is written to 1 is refused
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


class _Stream:
    """A text stream that handles its own failures, and escapes what its encoding lacks."""

    def __init__(self, stream: Any, failed: Callable[[OSError], None]) -> None:
        self._stream, self._failed = stream, failed
        self._first: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; see `safe_streams`."""
        try:
            self._stream.write(self._escaped(text))
        except OSError as error:
            self._give_up(error)
        self._tell()
        return len(text)

    def flush(self) -> None:
        """Write what is held back; see `safe_streams`."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)
        self._tell()

    def _escaped(self, text: str) -> str:
        encoding = self._stream.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def _give_up(self, error: OSError) -> None:
        """Let what is held back, and all that follows, go nowhere."""
        self._first = self._first or error
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()

    def _tell(self) -> None:
        """Every time: Click tries a stream with an empty text, and takes no offence."""
        if self._first is not None:
            self._failed(self._first)
