"""Somebody else's converter or runtime, in a confined process that may die without harm.

Runtimes are native code that nobody here wrote: they crash where they should refuse, and one
installs packages and calls home by being imported. So none is ever imported in this process, but in
a child (`edgeclean.child`) that works in an empty folder, which is removed with all that is in it.
"""

from __future__ import annotations

import importlib
from typing import Any

from edgeclean.child.inside import ChildLimits
from edgeclean.child.parcel import Parcel
from edgeclean.child.process import run_child
from edgeclean.errors import ToolchainError
from edgeclean.files.temporary import temporary_folder
from edgeclean.files.text import first_line

DEFAULT_LIMITS = ChildLimits()


def run_confined(
    task: str, given: Parcel, doing: str, limits: ChildLimits = DEFAULT_LIMITS
) -> Parcel:
    """Do a task in a confined process of its own; see `run_child`.

    Raises:
        InputRejectedError: the task refused.
        ToolchainError: the task could not find what it needs; or its process did not start,
            crashed, was killed, passed a limit, or answered nonsense.
    """
    with temporary_folder("edgeclean-") as folder:
        (folder / "home").mkdir()
        return run_child(task, given, limits, doing=doing, failure=ToolchainError, folder=folder)


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
