"""The child's side: it limits itself, does the task that its parent named, and answers on stdout.

The answer is ``!`` once the limits stand, and then a parcel.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclean.child.parcel import JsonValue, Parcel, packed, unpacked
from edgeclean.confinement import confine
from edgeclean.errors import EdgecleanError
from edgeclean.processes import go_on_watched
from edgeclean.settings import Settings, setting

Task = Callable[[Parcel], Parcel]
READY = b"!"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits(Settings):
    """The most that a child process may take.

    Attributes:
        memory_bytes: address space beside what the interpreter has mapped and five times what it
            is given; runtimes reserve more than they use.
        cpu_seconds: processor time, beside a second for each 32 MiB that it is given.
        wall_seconds: time by the clock, for one that hangs.
        file_bytes: of each file that it writes.
        answer_bytes: of what it answers.
    """

    memory_bytes: int = setting(16 * 2**30, at_least=1, at_most=2**44)
    cpu_seconds: int = setting(900, at_least=1, at_most=10**6)
    wall_seconds: int = setting(3600, at_least=1, at_most=10**8)
    file_bytes: int = setting(2**31, at_least=0, at_most=2**40)
    answer_bytes: int = setting(2**31, at_least=1, at_most=2**45)


def main(settings_text: str) -> None:
    """Do as `run`, watched by a process that ends what is left; a child's only way in."""
    settings = json.loads(settings_text)
    go_on_watched(settings["parent"])
    os.umask(0o077)
    held = {"confined": confine(Path.cwd())} if settings["confined"] else {}
    run(settings, held)
    # What a runtime does when the interpreter ends is nobody's concern: some crash then.
    sys.stderr.flush()
    os._exit(0)


def run(settings: Mapping[str, JsonValue], held: Mapping[str, JsonValue]) -> None:
    """Do the named task with the parcel on stdin; the settings come from the parent, not from it.

    Args:
        settings: what `process.run_child` says.
        held: facts that are put beside those of the answer.
    """
    module, _, name = settings["task"].partition(":")
    task: Task = getattr(importlib.import_module(module), name)  # before memory is limited
    limit_process(ChildLimits(**settings["limits"]), settings["given_bytes"])
    # Native code prints to descriptor 1 as it likes: the answer gets a descriptor of its own.
    with os.fdopen(os.dup(1), "wb") as answer_to:
        os.dup2(2, 1)
        answer_to.write(READY)
        answer_to.flush()
        answer = answered(task, unpacked(sys.stdin.buffer.read()))
        answer_to.writelines(packed(replace(answer, facts={**answer.facts, **held})))


def limit_process(limits: ChildLimits, given_bytes: int) -> None:
    """Lower this process's own limits for good; what is already mapped and used does not count."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_seconds + given_bytes // 2**25
    for limit, bound in (
        (resource.RLIMIT_AS, mapped_bytes() + limits.memory_bytes + 5 * given_bytes),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        # The hard limit for seconds lies higher: at the soft one a signal first names the reason.
        most = bound + 5 if limit == resource.RLIMIT_CPU else bound
        if hard != resource.RLIM_INFINITY:  # nobody but root may raise it
            bound, most = min(bound, hard), min(most, hard)
        resource.setrlimit(limit, (bound, most))


def mapped_bytes(told_in: Path = Path("/proc/self/statm")) -> int:
    """Return the bytes of address space in use; 64 GiB on macOS, which enforces no limit on it."""
    try:
        pages = int(told_in.read_text("ascii").split()[0])
    except OSError:
        return 64 * 1024**3
    return pages * os.sysconf("SC_PAGE_SIZE")


def answered(task: Task, given: Parcel) -> Parcel:
    """Return what a task answers, or the kind and the words of its refusal."""
    try:
        return task(given)
    except (EdgecleanError, MemoryError) as error:
        return Parcel(facts={"kind": type(error).__name__, "refused": str(error)})
