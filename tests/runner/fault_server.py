"""Makes a run of the pipeline in a forked process for each line of stdin, to be killed at will.

The server itself only imports: what it forks from is fresh, and starting it takes seconds once.
Answers with the process's number, and with its exit code when it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from small_checkpoint import quick_settings, spec

from edgeclean.errors import EdgecleanError
from edgeclean.pipeline import compress
from edgeclean.runner import Cache, Runner


def main() -> None:
    """Serve until stdin ends."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run(asked)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def run(asked: dict[str, Any]) -> NoReturn:
    """One run, which dies without a word where the named stage has ended."""
    code = 1
    try:
        if asked["die_after"]:
            _die_after(asked["die_after"])
        checkpoint = Path(asked["checkpoint"])
        with Path(asked["told"]).open("w", encoding="utf-8") as told:
            cache = Cache(folder=Path(asked["cache"]), notify=lambda line: print(line, file=told))
            output = Path(asked["output"])
            try:
                compress(
                    checkpoint,
                    spec(),
                    output,
                    quick_settings(),
                    code_folder=checkpoint.parent,
                    cache=cache,
                )
                code = 0
            except EdgecleanError as error:
                print(error, file=told)
                code = error.exit_code
    finally:
        os._exit(code)


def _die_after(stage: str) -> None:
    """When the runner returns its result, which is kept by then."""
    for method in ("__call__", "once"):
        plain = getattr(Runner, method)

        def deadly(self: Runner, name: str, *parts: Any, plain: Any = plain, **named: Any) -> Any:
            made = plain(self, name, *parts, **named)
            if name == stage:
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        setattr(Runner, method, deadly)


if __name__ == "__main__":
    main()
