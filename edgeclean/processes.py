"""What a process asks of the system: to end with its parent or in order, and about freed memory."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_MOST_SECONDS = 10.0  # that ending what a process left may take
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_MOST_INT = 2**31 - 1


def end_with_parent(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """End this process when its parent ends, where the system can do that, and at once if it has.

    Source: prctl(2), PR_SET_PDEATHSIG.

    Args:
        parent: the process number of the one that started this one.
        by: the signal that comes then.
    """
    _prctl(_PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:
        os._exit(1)


def go_on_watched(parent: int) -> None:
    """Go on in a child; this process waits for it, ends all that it left, and ends as it did.

    Whatever the child starts falls to this process when its own parent ends, also if it has left
    the group and the session (Linux); and this process has nobody else's children. SIGTERM, which
    comes also when the parent ends, ends them all. Elsewhere the child's group alone is ended. To
    be called before a second thread starts.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.

    Args:
        parent: the process number of the one that started this one.

    Raises:
        OSError: no further process can be started.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until it is known whom to end
    end_with_parent(parent, signal.SIGTERM)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    watching, child = os.getpid(), os.fork()
    if child == 0:
        os.setsid()
        end_with_parent(watching)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _, status = os.waitpid(child, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    _end_children()
    _end_as(os.waitstatus_to_exitcode(status))


def _end_children() -> None:
    """Kill and await all children of this process, and those that fall to it by that.

    Source: proc(5), /proc/pid/task/tid/children, which may leave out some while others end.
    """
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    end = time.monotonic() + _MOST_SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            for child in listed.read_text("ascii").split():
                os.kill(int(child), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:  # none is left
            return
        time.sleep(0.001)


def _end_as(code: int) -> None:
    """End this process with an exit code, or by the signal that a negative one stands for."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it is not this one that crashed
        with suppress(OSError, ValueError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 1)


def _prctl(option: int, value: int) -> None:
    """Ask the kernel for something of this process; nothing where it is not Linux."""
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


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
