"""Ctrl-C: one line that says how to go on, and the exit code that shells give for it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from edgeclean.cli.console import answer_failure, show_line
from edgeclean.cli.progress import DOING

EXIT_CODE = 130  # 128 + SIGINT
KEEPS: ContextVar[bool | None] = ContextVar("KEEPS", default=None)  # whether stages are kept
P = ParamSpec("P")
T = TypeVar("T")


def interrupted_line() -> str:
    """What a run that was interrupted leaves, and how to go on."""
    stage = DOING.get().partition(":")[0].partition(",")[0]
    where = f" while {stage[:1].lower()}{stage[1:]}" if stage else ""
    left = {
        True: "; finished stages are kept: run the same command again to go on",
        False: "; nothing was kept: run the same command again to start over",
        None: "; run the same command again to start over",
    }
    return f"interrupted{where}{left[KEEPS.get()]}"


def interruptible(command: Callable[P, T]) -> Callable[P, T]:
    """The command, in which Ctrl-C is an error of one line like any other."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            line = interrupted_line()
            show_line(line)
            if kwargs.get("as_json"):
                answer_failure("interrupted", line, EXIT_CODE)
            sys.exit(EXIT_CODE)

    return run
