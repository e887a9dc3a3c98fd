"""What every command has in common: numbers that are numbers, and an end at Ctrl-C."""

from __future__ import annotations

import math
import signal
from contextvars import ContextVar
from typing import Any

import typer
from typer.core import TyperCommand

from edgeclean.cli.progress import STAGE
from edgeclean.cli.streams import prints_on_stderr
from edgeclean.errors import EndedBySignalError, UsageError

LARGEST = 2**63 - 1
CACHES: ContextVar[bool | None] = ContextVar("CACHES", default=None)  # whether a cache is used
# Click's own, whichever Click is Typer's.
WRONG_WORDS: Any = typer.BadParameter.__base__
MAX_QUOTED = 200  # characters of a message in which a value stands


class Command(TyperCommand):
    """A command none of whose options takes NaN, infinity or a number beyond 64 bits."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the whole first sentence: a list of commands has room for two lines of each."""
        del limit
        first, _, _ = (self.help or "").partition("\n\n")
        return " ".join(first.split())

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C is one line.

        Raises:
            EndedBySignalError: on Ctrl-C.
        """
        try:
            with prints_on_stderr():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise EndedBySignalError(
                interrupted_line(),
                exit_code=128 + signal.SIGINT,
                signal="SIGINT",
            ) from None

    def parse_args(self, ctx: Any, words: list[str]) -> list[str]:
        """Parse as any command does, and then look at the numbers.

        Raises:
            UsageError: naming the option.
        """
        try:
            rest = super().parse_args(ctx, words)
        except typer.BadParameter as wrong:  # it may quote thousands of digits
            if len(wrong.message) > MAX_QUOTED:
                wrong.message = f"{wrong.message[:MAX_QUOTED]}..."
            raise
        for parameter in self.params:
            number = ctx.params.get(parameter.name)
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{parameter.opts[0]} is {number}; it must be a finite number")
            if isinstance(number, int) and abs(number) > LARGEST:
                raise UsageError(
                    f"{parameter.opts[0]} is {str(number)[:20]}...; a number has 64 bits at most"
                )
        return rest


def usage_line(wrong: Any) -> str:
    """What Click says of a command line over several lines, in one."""
    where = wrong.ctx.command_path if wrong.ctx else "edgeclean"
    message = wrong.format_message().rstrip(".?")
    cut = f"{message[:MAX_QUOTED]}..." if len(message) > 2 * MAX_QUOTED else message
    return f"{cut}; `{where} --help` says what there is"


def interrupted_line() -> str:
    """What a run that was interrupted leaves, and how to go on."""
    stage = STAGE.get().partition(":")[0].partition(",")[0]
    where = f" while {stage[:1].lower()}{stage[1:]}" if stage else ""
    left = {
        True: "; finished stages are kept: run the same command again to go on",
        False: "; nothing was kept: run the same command again to start over",
        None: "; run the same command again to start over",
    }
    return f"interrupted{where}{left[CACHES.get()]}"
