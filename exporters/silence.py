"""What exporters print is not for the reader of our stdout, which may be one JSON document."""

from __future__ import annotations

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress


@contextmanager
def nothing_on_stdout() -> Iterator[None]:
    """Let nothing reach stdout within, neither of Python nor of the C++ libraries beneath it.

    PyTorch's exporter, where it fails, prints the whole graph past Python. What was printed before
    is not lost; other threads that print within are not heard.
    """
    _flush()
    try:
        kept = os.dup(1)
    except OSError:  # the program was started without a stdout
        kept = None
    if kept is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        if kept is not None:
            _flush_libraries()
            os.dup2(kept, 1)
            os.close(kept)


def _flush() -> None:
    with suppress(OSError, ValueError, AttributeError):  # closed, or none
        sys.stdout.flush()
    _flush_libraries()


def _flush_libraries() -> None:
    """Flush C's own streams, which hold back what is printed to a pipe or a file."""
    with suppress(OSError, AttributeError, TypeError):  # a system that does not let itself be asked
        ctypes.CDLL(None).fflush(None)
