"""Untrusted bytes are parsed in a process of its own (`edgeclean.child`), which writes nothing."""

from __future__ import annotations

from dataclasses import asdict, replace

from edgeclean.child.inside import ChildLimits, Task
from edgeclean.child.parcel import Parcel
from edgeclean.child.process import run_child
from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits


def parse_isolated(task: Task, given: Parcel, limits: LoadLimits) -> Parcel:
    """Parse in a process of its own.

    Args:
        task: a plain function at the top of a module, which the child imports by its name; what
            it is called with has the limits beside, for `limits_of`.
        given: the untrusted bytes, among its files; they have no say in what runs.
        limits: what the child may use.

    Raises:
        InputRejectedError: the task refused, or the process died or overran a limit.
        ToolchainError: the process did not start, as where the task is not found by its name.
    """
    held = ChildLimits(
        memory_bytes=limits.memory_bytes,
        cpu_seconds=limits.cpu_seconds,
        # Only for a process that hangs: on a busy machine a second of work takes minutes.
        wall_seconds=600 + 10 * limits.cpu_seconds,
        file_bytes=0,
        answer_bytes=limits.memory_bytes + 5 * sum(map(len, given.files.values())),
    )
    name = f"{task.__module__}:{task.__qualname__}"
    given = with_limits(given, limits)
    return run_child(name, given, held, doing="parsing", failure=InputRejectedError)


def with_limits(given: Parcel, limits: LoadLimits) -> Parcel:
    """Put limits beside what a task is given."""
    return replace(given, facts={**given.facts, "limits": asdict(limits)})


def limits_of(given: Parcel) -> LoadLimits:
    """Return the limits that `with_limits` put there; for tasks."""
    return LoadLimits(**given.facts["limits"])
