"""One task in a process of its own, which may die without harm.

The parent starts a fresh interpreter, hands it a parcel, and takes back another one or a refusal.
The child limits itself before it reads what it is given (`edgeclean.child.inside`); between the two
stands a process that waits, and ends whatever the child started with it, also where the parent is
ended (Linux). What comes back is bounded, and read as data.

Where a folder is given, code runs that nobody here wrote: the child gives up the network and all
writing elsewhere (`edgeclean.confinement`). Else it is no jail: it has the user's rights, and is
the second line, behind parsers that execute nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import IO

from edgeclean.child.inside import READY, ChildLimits
from edgeclean.child.parcel import Parcel, packed, unpacked, untrusted_answer
from edgeclean.confinement import quiet_environment
from edgeclean.errors import EdgecleanError, InputRejectedError, ToolchainError
from edgeclean.files.text import printable

GRACE_SECONDS = 15  # for ending what a task started, before it is left
MOST_LOG_BYTES = 2**16  # of what was printed, for the message of a failure
MOST_REFUSAL = 10_000  # characters of a task's own words
_PART_BYTES = 2**20
# Parent and child of one installation: the child gets the parent's module path, as arguments.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from edgeclean.child.inside import main; main(sys.argv[1])"
)


def run_child(
    task: str,
    given: Parcel,
    limits: ChildLimits,
    *,
    doing: str,
    failure: type[EdgecleanError],
    folder: Path | None = None,
) -> Parcel:
    """Do a task in a process of its own.

    Args:
        task: of a function at the top of a module, as ``module:name``.
        given: what it is called with.
        limits: what it may take.
        doing: for messages, such as "ncnn 1.0: converting the network".
        failure: what is raised where the process dies, passes a limit or answers nonsense.
        folder: the current folder of a process that is confined to it.

    Returns:
        What it answered; ``facts`` has "confined" beside, where it was, with what the kernel held
        it to.

    Raises:
        InputRejectedError: the task refused.
        ToolchainError: the task could not find what it needs, or the process did not start.
    """
    parts = packed(given)
    settings = {
        "task": task,
        "limits": asdict(limits),
        "given_bytes": sum(map(len, parts)),
        "confined": folder is not None,
        "parent": os.getpid(),
    }
    path = [str(Path(entry).absolute()) for entry in sys.path]
    # -I: neither the current folder, nor user packages, nor variables matter.
    words = [sys.executable, "-I", "-W", "ignore", "-c", _CHILD, json.dumps(settings), *path]
    code, answer, log = _ended(words, parts, limits, folder)
    said = _last_line(log)
    if code == -signal.SIGALRM:
        raise failure(f"{doing} took too long and was stopped{said}")
    if not answer.startswith(READY):
        raise ToolchainError(f"{doing}: its process did not start{said or ': no message'}")
    if code != 0:
        raise failure(
            f"{doing} {_death(code)}; the limits are memory_bytes {limits.memory_bytes} and "
            f"cpu_seconds {limits.cpu_seconds}{said}"
        )
    with untrusted_answer(failure(f"{doing} came to no answer{said}")):
        found = unpacked(answer, len(READY))
    if "refused" in found.facts:
        raise _refusal(found, limits, doing, failure)
    return found


def _refusal(
    answer: Parcel, limits: ChildLimits, doing: str, failure: type[EdgecleanError]
) -> EdgecleanError:
    kind = answer.facts.get("kind")
    if kind == "MemoryError":
        return failure(f"{doing} needs more than the limit memory_bytes {limits.memory_bytes}")
    words = printable(str(answer.facts["refused"]))[:MOST_REFUSAL]
    return ToolchainError(words) if kind == "ToolchainError" else InputRejectedError(words)


def _ended(
    words: list[str], given: tuple[bytes, ...], limits: ChildLimits, folder: Path | None
) -> tuple[int, bytes, bytes]:
    """Run the child to its end, with all that it started; its exit code, answer and last words."""
    child = subprocess.Popen(  # noqa: S603 - our own interpreter and our own arguments
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={} if folder is None else quiet_environment(folder / "home"),
        start_new_session=True,  # no terminal's signals: it ends what the task started first
    )
    answer: list[bytes] = []
    log: list[bytes] = []
    talks = (
        Thread(target=_send, args=(child.stdin, given), daemon=True),
        Thread(target=_keep_first, args=(child.stdout, answer, limits.answer_bytes), daemon=True),
        Thread(target=_keep_last, args=(child.stderr, log), daemon=True),
    )
    for talk in talks:
        talk.start()
    try:
        code = child.wait(limits.wall_seconds)
    except subprocess.TimeoutExpired:
        code = -signal.SIGALRM
    finally:
        _end(child)
    for talk in talks:  # at once; but a process that left the group may hold the other end
        talk.join(GRACE_SECONDS)
    return code, b"".join(answer), b"".join(log)


def _send(stream: IO[bytes], parts: tuple[bytes, ...]) -> None:
    with suppress(BrokenPipeError), stream:
        stream.writelines(parts)


def _keep_first(stream: IO[bytes], kept: list[bytes], most_bytes: int) -> None:
    with stream:
        # Behind the limit the stream is closed, and the child cannot go on.
        while most_bytes >= 0 and (part := os.read(stream.fileno(), _PART_BYTES)):
            kept.append(part)
            most_bytes -= len(part)


def _keep_last(stream: IO[bytes], kept: list[bytes]) -> None:
    with stream:
        while part := os.read(stream.fileno(), _PART_BYTES):
            kept[:] = [b"".join((*kept, part))[-MOST_LOG_BYTES:]]


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _death(code: int) -> str:
    if code == -signal.SIGXCPU:
        return "used up its processor time"
    if code == -signal.SIGXFSZ:
        return "wrote more than it may"
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL), most often because the machine has no memory left"
    if code < 0:
        with suppress(ValueError):
            return f"crashed ({signal.Signals(-code).name})"
        return f"was ended by signal {-code}"
    return f"ended with code {code}"


def _last_line(log: bytes) -> str:
    lines = log.decode("utf-8", "replace").strip().splitlines()
    return f": {printable(lines[-1].strip())[:200]}" if lines else ""
