"""Runs the real command line for one case after another, each in a forked process of its own.

Starting an interpreter with torch and ONNX takes seconds, so one is started, and forks. Asked on
stdin, answers on stdout, a line of JSON each; what a case itself says goes to files.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NoReturn

from edgeclean import cli

ADDRESS_SPACE = 12 * 2**30  # with a guard gone, the case dies and not the machine
CPU_SECONDS = 60
WALL_SECONDS = 900  # on a machine that others keep busy, a second of work takes a minute


def main() -> None:
    """Serve until stdin ends."""
    import edgeclean.bundle.verify
    import edgeclean.load.onnx.importer
    import edgeclean.pipeline  # noqa: F401 - loaded once, for every fork

    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            run_case(asked)
        _, status, usage = os.wait4(pid, 0)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": usage.ru_utime + usage.ru_stime,  # its children's as well
            "peak_bytes": usage.ru_maxrss * 1024,  # the largest process of the case
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def run_case(asked: dict[str, Any]) -> NoReturn:
    """In the fork: limits, a bare environment, the command, its exit code."""
    code = 1
    try:
        os.chdir(asked["folder"])
        environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "COLUMNS": "200"}
        os.environ.clear()
        os.environ.update(environment, TMPDIR=asked["temporary"], HOME=asked["home"])
        tempfile.tempdir = None
        for number, name in ((1, "out"), (2, "err")):
            descriptor = os.open(Path(asked["said"]) / name, os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(descriptor, number)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        signal.alarm(WALL_SECONDS)
        sys.argv = ["edgeclean", *asked["words"]]
        cli.main()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 - what the interpreter itself would print
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
