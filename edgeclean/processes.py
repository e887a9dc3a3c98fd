"""What a process asks of the system: to end with its parent, and to keep or return freed memory."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

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
