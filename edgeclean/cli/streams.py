"""The streams stdout and stderr may be closed, full, or read by a program that stopped reading.

Without this, Python ends with exit code 120 when what it still holds back cannot be written, or
with a traceback. What is lost of stdout is an error; of stderr, which would have to tell of it,
nothing.

The answer alone goes to stdout: what the code of a network prints, or native code past Python, goes
to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from typing import Any

from edgeclean.errors import AnswerLostError

_ANSWER: ContextVar[Any] = ContextVar("_ANSWER", default=None)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Within, what cannot be written to stdout raises `AnswerLostError`, on stderr nothing does.

    Lastly stdout is flushed, whatever was raised; if that fails, it is too late to say so.
    """
    _open_closed()
    kept = sys.stdout, sys.stderr
    with _a_descriptor_of_its_own(kept[0]) as answer:
        sys.stdout, sys.stderr = _Stream(answer, _lost), _Stream(kept[1], lambda _error: None)
        ours = sys.stdout, sys.stderr
        try:
            yield
        finally:
            for stream in ours:
                with suppress(AnswerLostError):
                    stream.flush()
            sys.stdout, sys.stderr = kept


@contextmanager
def prints_on_stderr() -> Iterator[None]:
    """Within, what Python code prints goes to stderr, and `answer_stream` alone to stdout."""
    before = _ANSWER.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _ANSWER.reset(before)


def answer_stream() -> Any:
    """Return the text stream that a command's answer goes to: what stdout is, or was before."""
    return _ANSWER.get() or sys.stdout


@contextmanager
def _a_descriptor_of_its_own(stdout: Any) -> Iterator[Any]:
    """Yield a stream to where stdout leads; within, what is printed past Python goes to stderr."""
    try:
        standard = stdout.fileno() == 1
    except (OSError, ValueError):  # a stream that the program which calls `main` made
        standard = False
    if not standard:
        yield stdout
        return
    with os.fdopen(os.dup(1), "w", encoding=stdout.encoding, errors=stdout.errors) as answer:
        stdout.flush()
        os.dup2(2, 1)
        try:
            yield answer
        finally:
            os.dup2(answer.fileno(), 1)


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
