"""The long commands work in a process of their own, and this one clears up after it.

PyTorch, ONNX Runtime and the drivers below them are native code: where that crashes, or the system
ends a process that takes too much memory, no Python code of that process runs any more. So the
command is split by a fork before anything heavy is imported: the child works, as if it were alone,
on the same terminal; the parent passes signals on, waits, and, should the child die of a signal,
removes what it left and reports it in one line.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from edgeclean.errors import EndedBySignalError, UsageError
from edgeclean.notes import ANSWERED, ENDED, NOTES, noted
from edgeclean.processes import end_with_parent

COMMANDS = (
    *("compress", "fleet", "scan", "inspect", "export", "latency-table", "bench", "build-engine"),
    *("verify", "sign", "embed"),
)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def is_split(words: Sequence[str]) -> bool:
    """Whether these words start a long command in a process that can still be split.

    With other threads, or native libraries that may have some, a fork is not safe: a program that
    calls this package's `main` itself goes without.
    """
    long = bool(words) and words[0] in COMMANDS and "--help" not in words
    alone = "torch" not in sys.modules and threading.active_count() == 1
    return long and alone and hasattr(os, "fork")


def split() -> bool:
    """Go on in a child; in this process, wait for it and exit as it does.

    Returns:
        True, in the child alone.

    Raises:
        SystemExit: in the parent, with the child's exit code.
        EndedBySignalError: in the parent; the child was ended by a signal, or by an exit past the
            end of `main`, and is cleared up after.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    parent, file = os.getpid(), _notes_file()
    with _signals_blocked():
        child = os.fork()
        if child == 0:
            NOTES.set(file)
            end_with_parent(parent)
            _ignore_further_interrupts()
            return True
        kept = {number: _forward(number, child) for number in FORWARDED}
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    notes = noted(file)
    os.close(file)
    if os.WIFEXITED(status) and [ENDED] in notes:
        raise SystemExit(os.WEXITSTATUS(status))
    from edgeclean.files.aftermath import clear_up

    finished = clear_up(notes)
    left = "what it had finished is in place" if finished else "what was there before is untouched"
    answered = [ANSWERED] in notes
    if answered:
        left = "the answer was given before"
    if os.WIFEXITED(status):
        raise _ended_by_itself(os.WEXITSTATUS(status), left, answered=answered)
    raise _ended_by_signal(os.WTERMSIG(status), left, answered=answered)


def hear_no_more() -> None:
    """Let no signal end a child that is about to tell its error, before it ends by itself.

    Else the parent, which sees how the child ended, would tell a second reason.
    """
    if NOTES.get() is not None:
        for number in FORWARDED:
            signal.signal(number, signal.SIG_IGN)


def _notes_file() -> int:
    """An open file without a name, for this process and the child.

    Raises:
        UsageError: no temporary file can be made.
    """
    try:
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())
    except OSError as error:
        raise UsageError(
            f"no temporary file can be made ({error.strerror}); set TMPDIR to a folder that can be "
            "written"
        ) from None


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Within, signals wait: none is lost between the fork and the handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forward(number: int, child: int) -> signal._HANDLER:
    """Send the child what is sent to this process; the handler that was there before."""
    if signal.getsignal(number) is signal.SIG_IGN:  # nohup, and jobs behind a script's &
        return signal.SIG_IGN

    def handler(received: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, received)

    return signal.signal(number, handler)


def _ignore_further_interrupts() -> None:
    """Ctrl-C reaches both processes, and the parent passes it on: the second must not cut the
    clearing up of the first short."""  # noqa: D205, D209
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return

    def once(_received: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, once)


def _ended_by_itself(code: int, left: str, *, answered: bool) -> EndedBySignalError:
    return EndedBySignalError(
        f"the process ended itself with code {code} before its work was done, as os._exit does in "
        f"a network's code or in a library; {left}",
        answered=answered,
    )


def _ended_by_signal(number: int, left: str, *, answered: bool) -> EndedBySignalError:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = f"signal {number}"
    code, message = (
        1,
        f"native code crashed ({name}): a defect of edgeclean or of a library below it",
    )
    if number in FORWARDED:
        code, message = 128 + number, f"stopped by {name}"
    elif number == signal.SIGKILL:
        message = (
            f"the process was killed ({name}), most often because the machine has no memory left"
        )
    elif number not in (
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGILL,
        signal.SIGFPE,
        signal.SIGABRT,
    ):
        message = f"the process was ended by {name}"
    return EndedBySignalError(f"{message}; {left}", exit_code=code, answered=answered, signal=name)
