"""Run a local program that speaks to a device, and take no more from it than was agreed.

What comes is read as it comes and counted here: a device that ignores what it was asked, or sends
for ever, or not at all, ends in an error. Nothing of it is kept beyond the limits.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from edgeclean.errors import InputRejectedError, ToolchainError

BLOCK_BYTES = 2**16
MOST_LINE = 400  # characters of a line of progress
Log = Callable[[str], None]


class ConnectionLostError(ToolchainError):
    """The device cannot be reached, or the connection broke; what was done there is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimits:
    """The most that is taken from a device, which may send for ever.

    Attributes:
        answer: bytes on its stdout.
        messages: bytes on its stderr.
        lines: of them that are shown as they come.
        seconds: from the start of the command to its end.
    """

    answer: int = 2**16
    messages: int = 2**16
    lines: int = 1000
    seconds: int = 120


class Exchange:
    """One command: what is sent to it, and what came of it so far."""

    def __init__(
        self, words: Sequence[str], host: str, limits: AnswerLimits, log: Log | None
    ) -> None:
        """Prepare a local program's words; ``host`` is only for messages."""
        self._words, self._host, self._limits, self._log = [*words], host, limits, log
        self._answer, self._messages, self._line = bytearray(), b"", b""
        self._heard = self._lines = 0

    def run(self, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
        """Start the program, send it ``stdin``, and wait until it ends; it never outlives this.

        Raises:
            InputRejectedError: it sent more than the limits.
            ConnectionLostError: the time was over first.
        """
        deadline = time.monotonic() + self._limits.seconds
        with subprocess.Popen(  # noqa: S603 - our own words
            self._words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as running:
            try:
                self._exchange(running, stdin, deadline)
                code = running.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise self._too_late() from None
            finally:
                running.kill()  # does nothing to one that has ended
        self._say(b"\n" if self._line else b"")
        return subprocess.CompletedProcess(self._words, code, bytes(self._answer), self._messages)

    def _exchange(self, running: subprocess.Popen[bytes], stdin: bytes, deadline: float) -> None:
        """Write and read whatever can be, until both of its outputs are closed."""
        waiting = memoryview(stdin)
        assert running.stdin is not None  # noqa: S101 - all three were asked for
        assert running.stdout is not None  # noqa: S101
        assert running.stderr is not None  # noqa: S101
        with selectors.DefaultSelector() as ready:
            os.set_blocking(running.stdin.fileno(), False)
            ready.register(running.stdin, selectors.EVENT_WRITE)
            ready.register(running.stdout, selectors.EVENT_READ, self._take_answer)
            ready.register(running.stderr, selectors.EVENT_READ, self._take_message)
            while any(key.events == selectors.EVENT_READ for key in ready.get_map().values()):
                if time.monotonic() > deadline:
                    raise self._too_late()
                for key, _ in ready.select(max(0.0, deadline - time.monotonic())):
                    if key.data is None:
                        waiting = _write(running.stdin, waiting)
                        if not waiting:
                            ready.unregister(running.stdin)
                            _close(running.stdin)
                        continue
                    block = os.read(key.fd, BLOCK_BYTES)
                    if not block:
                        ready.unregister(key.fileobj)
                    key.data(block)

    def _take_answer(self, block: bytes) -> None:
        self._answer += block
        if len(self._answer) > self._limits.answer:
            raise self._too_much("answers", self._limits.answer)

    def _take_message(self, block: bytes) -> None:
        self._heard += len(block)
        self._messages = (self._messages + block)[-BLOCK_BYTES:]  # reasons stand at the end
        if self._heard > self._limits.messages:
            raise self._too_much("reports", self._limits.messages)
        self._say(block)

    def _say(self, block: bytes) -> None:
        """Hand on every line that is whole; of one without an end, the beginning is kept."""
        *lines, rest = (self._line + block).split(b"\n")
        self._line = rest[:BLOCK_BYTES]
        if self._log is None:
            return
        for line in lines:
            self._lines += 1
            if self._lines > self._limits.lines:
                raise self._too_much("reports", self._limits.lines, "lines")
            self._log(line.decode("utf-8", "replace").strip()[:MOST_LINE])

    def _too_much(self, verb: str, most: int, unit: str = "bytes") -> InputRejectedError:
        return InputRejectedError(
            f"{self._host} {verb} more than the {most} {unit} that are taken from a device; what "
            "runs there is not what was sent, or the device is not to be trusted"
        )

    def _too_late(self) -> ConnectionLostError:
        return ConnectionLostError(
            f"{self._host} did not end within {self._limits.seconds} seconds; what was done there "
            "is kept: look at the device, and run the same command again"
        )


def _write(pipe: IO[bytes], waiting: memoryview) -> memoryview:
    """Write what the pipe takes; nothing is left for one that is closed at its other end."""
    try:
        return waiting[os.write(pipe.fileno(), waiting[:BLOCK_BYTES]) :] if waiting else waiting
    except BlockingIOError:
        return waiting
    except BrokenPipeError:
        return waiting[:0]


def _close(pipe: IO[bytes]) -> None:
    with suppress(BrokenPipeError):
        pipe.close()
