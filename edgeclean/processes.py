"""What a process asks of the system: to end with its parent or in order, and about freed memory."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_MOST_INT = 2**31 - 1


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends, where the system can do that, and at once if it has.

    Source: prctl(2), PR_SET_PDEATHSIG.

    Args:
        parent: the process number of the one that started this one.
    """
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Let what is within clear up after SIGTERM and SIGHUP too; then they end this process.

    For what has processes of its own to end and documents to write, as it does after Ctrl-C. Of the
    main thread alone; a signal that is ignored, or that the program handles itself, stays so.
    """
    before = {
        number: signal.signal(number, _unwind)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    }
    try:
        yield
    except _Unwound as unwound:
        signal.signal(unwound.number, signal.SIG_DFL)
        os.kill(os.getpid(), unwound.number)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Unwound(BaseException):
    """Raised by a signal, and through everything that clears up on its way."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def _unwind(number: int, _frame: FrameType | None) -> None:
    for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):  # clearing up is not cut short
        signal.signal(other, signal.SIG_IGN)
    raise _Unwound(number)


def keep_freed_memory() -> None:
    """Let this process use freed memory again, where the C library is glibc; elsewhere do nothing.

    glibc fetches every block beyond 32 MB from the system and gives it back when it is freed, so
    each pass over 224x224 images pays for empty pages again. The whole process is changed, so a
    program asks for it and the library does not.

    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError, OSError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, _MOST_INT)


def return_freed_memory() -> None:
    """Return all whole pages that this process has freed, where the C library is glibc.

    After `keep_freed_memory` what one stage has freed lies in pieces between what is left of it,
    and the next stage, whose blocks have other sizes, would take new memory beside it.

    Source: malloc_trim(3).
    """
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
