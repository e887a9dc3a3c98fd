"""Somebody else's converter or runtime, in a confined process that may die without harm.

Runtimes are native code that nobody here wrote: they crash where they should refuse, and one
installs packages and calls home by being imported. So none is ever imported in this process. A
child starts with an empty environment in an empty folder, gives up the network and all writing
elsewhere (`edgeclean.confinement`), limits its memory and time, and only then imports what it is
asked to run. What goes in and what comes out are files in that folder, bounded, and read as data.
Between the two stands a process that waits, and ends whatever the child started with it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeclean.confinement import confine, quiet_environment
from edgeclean.errors import EdgecleanError, InputRejectedError, ToolchainError
from edgeclean.files.documents import parse_json
from edgeclean.files.temporary import temporary_folder
from edgeclean.files.text import first_line, printable
from edgeclean.load.child import mapped_bytes
from edgeclean.load.isolation import untrusted_answer
from edgeclean.processes import go_on_watched
from edgeclean.settings import Settings, setting

JsonValue = Any  # as in `edgeclean.networks.state`, which would load torch into every child
GIVEN, ANSWER, LOG = "given", "answer", "log"
GRACE_SECONDS = 15  # for ending what a task started, before it is left
MOST_LOG_BYTES = 2**16  # of what a runtime printed, for the message of a failure
_LENGTH = struct.Struct("<Q")
# As `edgeclean.load.isolation`: a fresh interpreter with this one's module path.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[2:]; from exporters.confined import main; main(sys.argv[1])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfinedLimits(Settings):
    """The most that a confined process may take.

    Attributes:
        memory_bytes: address space beside what the interpreter has mapped; runtimes reserve more
            than they use.
        cpu_seconds: processor time.
        wall_seconds: time by the clock, for one that hangs.
        file_bytes: of each file that it writes.
    """

    memory_bytes: int = setting(16 * 2**30, at_least=1, at_most=2**44)
    cpu_seconds: int = setting(900, at_least=1, at_most=10**6)
    wall_seconds: int = setting(3600, at_least=1, at_most=10**7)
    file_bytes: int = setting(2**31, at_least=1, at_most=2**40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What a confined process is given, and what it answers.

    Attributes:
        facts: a JSON object.
        files: bytes by name.
    """

    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


Task = Callable[[Parcel], Parcel]
DEFAULT_LIMITS = ConfinedLimits()


def run_confined(
    task: str, given: Parcel, doing: str, limits: ConfinedLimits = DEFAULT_LIMITS
) -> Parcel:
    """Do a task in a confined process of its own.

    Args:
        task: of a function at the top of a module, as ``module:name``; it takes and returns a
            `Parcel`, and the current folder is its own.
        given: what it is called with.
        doing: for messages, such as "ncnn 1.0: converting the network".
        limits: what it may take.

    Returns:
        What it answered; ``facts`` has "confined" beside, with what the kernel held it to.

    Raises:
        InputRejectedError: the task refused.
        ToolchainError: the task could not find what it needs; or its process crashed, was killed,
            passed a limit, or answered nonsense.
    """
    settings = {"task": task, "limits": asdict(limits), "parent": os.getpid()}
    path = [str(Path(entry).absolute()) for entry in sys.path]
    words = [sys.executable, "-I", "-W", "ignore", "-c", _CHILD, json.dumps(settings), *path]
    with temporary_folder("edgeclean-") as folder:
        (folder / "home").mkdir()
        (folder / GIVEN).write_bytes(packed(given))
        code = _ended(words, folder, limits.wall_seconds)
        log = _last_words(folder / LOG)
        answer = _read(folder / ANSWER, limits.file_bytes) if code == 0 else b""
    if code != 0:
        raise ToolchainError(f"{doing} {_death(code)}{log}")
    with untrusted_answer(ToolchainError(f"{doing} came to no answer{log}")):
        found = unpacked(answer)
    refused = found.facts.get("refused")
    if refused is not None:
        kinds = {"InputRejectedError": InputRejectedError, "ToolchainError": ToolchainError}
        kind = kinds.get(str(found.facts.get("kind")), InputRejectedError)
        raise kind(printable(str(refused))[:1000])
    return found


def packed(parcel: Parcel) -> bytes:
    """A parcel as bytes."""
    lengths = [[name, len(content)] for name, content in parcel.files.items()]
    head = json.dumps({"facts": dict(parcel.facts), "files": lengths}, allow_nan=False).encode()
    return b"".join((_LENGTH.pack(len(head)), head, *parcel.files.values()))


def unpacked(contents: bytes) -> Parcel:
    """The parcel of some bytes; see `untrusted_answer` for where they are none."""
    (length,) = _LENGTH.unpack_from(contents)
    start = _LENGTH.size + length
    head = parse_json(contents[_LENGTH.size : start])
    files = {}
    for name, size in head["files"]:
        if not isinstance(size, int) or not 0 <= size <= len(contents) - start:
            raise ValueError("a file is longer than the parcel")
        files[str(name)] = contents[start : start + size]
        start += size
    if start != len(contents) or not isinstance(head["facts"], dict):
        raise ValueError("the parcel holds something else")
    return Parcel(facts=head["facts"], files=files)


def main(settings_text: str) -> None:
    """Do the task that the parent named; the child's only way in."""
    settings = json.loads(settings_text)
    go_on_watched(settings["parent"])
    folder = Path.cwd()
    os.umask(0o077)
    held = confine(folder)
    given = unpacked(Path(GIVEN).read_bytes())
    Path(GIVEN).unlink()
    module, _, name = settings["task"].partition(":")
    task: Task = getattr(importlib.import_module(module), name)
    _limit(ConfinedLimits(**settings["limits"]))
    try:
        answer = task(given)
        answer = replace(answer, facts={**answer.facts, "confined": held})
    except (InputRejectedError, ToolchainError) as error:
        answer = Parcel(facts={"refused": str(error), "kind": type(error).__name__})
    except EdgecleanError as error:
        answer = Parcel(facts={"refused": str(error), "kind": "InputRejectedError"})
    except MemoryError:
        words = f"it needs more than the limit memory_bytes {settings['limits']['memory_bytes']}"
        answer = Parcel(facts={"refused": words, "kind": "ToolchainError"})
    Path(ANSWER).write_bytes(packed(answer))
    # What a runtime does when the interpreter ends is nobody's concern: some crash then.
    sys.stderr.flush()
    os._exit(0)


def _limit(limits: ConfinedLimits) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_seconds
    for limit, bound in (
        (resource.RLIMIT_AS, mapped_bytes() + limits.memory_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        most = bound + 5 if limit == resource.RLIMIT_CPU else bound
        if hard != resource.RLIM_INFINITY:  # nobody but root may raise it
            bound, most = min(bound, hard), min(most, hard)
        resource.setrlimit(limit, (bound, most))


def _ended(words: list[str], folder: Path, wall_seconds: int) -> int:
    """Run the child to its end, with all that it started; its exit code."""
    with (folder / LOG).open("wb") as log:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and our own arguments
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=quiet_environment(folder / "home"),
            start_new_session=True,  # no terminal's signals: it ends what the task started first
        )
        try:
            return child.wait(wall_seconds)
        except subprocess.TimeoutExpired:
            return -signal.SIGALRM
        finally:
            child.terminate()
            try:
                child.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _death(code: int) -> str:
    if code == -signal.SIGALRM:
        return "took too long and was stopped"
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


def _last_words(log: Path) -> str:
    """The last line that was printed, for the message; much else is of no use to a reader."""
    with log.open("rb") as stream:
        length = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, length - MOST_LOG_BYTES))
        lines = stream.read().decode("utf-8", "replace").strip().splitlines()
    return f": {printable(lines[-1].strip())[:200]}" if lines else ""


def _read(path: Path, most_bytes: int) -> bytes:
    """A file that the child wrote: it may have put anything there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with os.fdopen(descriptor, "rb") as stream:
        about = os.fstat(descriptor)
        fits = stat.S_ISREG(about.st_mode) and about.st_size <= most_bytes
        return stream.read(most_bytes) if fits else b""


def imported(module: str, needs: str) -> Any:
    """Import a runtime's package; for tasks.

    Raises:
        ToolchainError: it is not installed, or does not load; the message says what brings it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        line = first_line(error)
        raise ToolchainError(
            f"{module} cannot be imported here ({line[:200]}); pip install '{needs}'"
        ) from None
