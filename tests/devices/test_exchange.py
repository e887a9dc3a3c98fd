"""What a device sends is counted here, whatever it was asked for."""

from __future__ import annotations

import sys
import time

import pytest

from edgeclean.devices.exchange import MOST_LINE, AnswerLimits, ConnectionLostError, Exchange
from edgeclean.errors import InputRejectedError

FLOOD = "import os\nwhile True: os.write({}, b'x' * 65536)"


def exchange(program: str, log: list[str] | None = None, **limits: int) -> Exchange:
    """A local program in the place of ssh."""
    words = [sys.executable, "-I", "-S", "-c", program]
    return Exchange(
        words, "board", AnswerLimits(**limits), None if log is None else lambda s: log.append(s)
    )


@pytest.mark.parametrize(("stream", "verb"), [(1, "answers"), (2, "reports")])
def test_a_device_that_sends_for_ever_is_left(stream: int, verb: str) -> None:
    with pytest.raises(InputRejectedError, match=f"board {verb} more than the 100000 bytes"):
        exchange(FLOOD.format(stream), answer=100_000, messages=100_000).run(b"")


@pytest.mark.parametrize("size", [0, 1, 99_999, 100_000, 100_001])
def test_the_limit_is_the_last_size_that_passes(size: int) -> None:
    program = f"import os; os.write(1, b'x' * {size})"
    if size > 100_000:
        with pytest.raises(InputRejectedError):
            exchange(program, answer=100_000).run(b"")
    else:
        assert exchange(program, answer=100_000).run(b"").stdout == b"x" * size


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(3600)",
        "import os, time; os.close(1); os.close(2); time.sleep(3600)",
        "import os, time\nwhile True: os.write(2, b'still here\\n'); time.sleep(0.01)",
    ],
)
def test_a_device_that_never_ends_is_left(program: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionLostError, match="board did not end within 1 seconds"):
        exchange(program, messages=10**9, seconds=1).run(b"")
    assert time.monotonic() - started < 1800  # and not an hour


def test_what_is_sent_arrives_though_nobody_reads_it_at_once() -> None:
    sent = bytes(range(256)) * 5000
    program = "import sys, time; time.sleep(0.3); sys.stdout.buffer.write(sys.stdin.buffer.read())"
    finished = exchange(program, answer=len(sent)).run(sent)
    assert (finished.returncode, finished.stdout) == (0, sent)


@pytest.mark.parametrize("program", ["pass", "import os; os.close(0)", "raise SystemExit(3)"])
def test_a_device_need_not_read(program: str) -> None:
    finished = exchange(program).run(b"x" * 10**6)
    assert finished.returncode == (3 if "3" in program else 0)
    assert finished.stdout == b""


@pytest.mark.parametrize("lines", [2, 3])
def test_no_more_lines_are_handed_on_than_are_asked_for(lines: int) -> None:
    log: list[str] = []
    program = "import os; os.write(2, b'y\\n' * 3)"
    if lines == 2:
        with pytest.raises(InputRejectedError, match="board reports more than the 2 lines"):
            exchange(program, log, lines=lines).run(b"")
    else:
        exchange(program, log, lines=lines).run(b"")
    assert log == ["y"] * lines
    assert exchange(program, lines=1).run(b"").stderr == b"y\n" * 3  # nobody reads them


def test_lines_are_handed_on_as_they_come_and_cut() -> None:
    log: list[str] = []
    long = 70_000
    program = f"import os; os.write(2, b'one\\ntwo\\n' + b'y' * {long} + b'\\nlast')"
    finished = exchange(program, log, messages=10**6).run(b"")
    assert log == ["one", "two", "y" * MOST_LINE, "last"]
    assert finished.stderr.endswith(b"y\nlast")
    assert len(finished.stderr) <= 2**16
