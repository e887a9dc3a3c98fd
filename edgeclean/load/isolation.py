"""Untrusted bytes are parsed in a process of their own, which may die without harm.

The parent starts a fresh interpreter with an empty environment, hands it the bytes, and takes back
a safetensors file or a refusal. The child limits itself before it reads the bytes: memory,
processor time, no files written, no core dump (see ``edgeclean.load.child``). On Linux it ends with
the parent.

The child is no jail: it has the user's rights. It is the second line, behind parsers that execute
nothing.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from edgeclean.errors import EdgecleanError, InputRejectedError
from edgeclean.load.limits import LoadLimits

Parser = Callable[[bytes, LoadLimits], bytes]
READY, ACCEPTED, REFUSED = b"!", b"+", b"-"
# Parent and child of one installation: the child gets the parent's module path, as arguments.
_CHILD = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from edgeclean.load.child import main; main(sys.argv[1])"
)


def parse_isolated(parser: Parser, contents: bytes, limits: LoadLimits) -> bytes:
    """Parse ``contents`` by ``parser`` in a process of its own.

    Args:
        parser: a plain function at the top of a module, which the child imports by its name.
        contents: the untrusted bytes; they have no say in what runs.
        limits: what the child may use, handed on to the parser.

    Raises:
        ValueError: the parser cannot be found by its name.
        InputRejectedError: the parser refused, or the process died or overran a limit.
        RuntimeError: the process did not get as far as reading the bytes (not the input's fault).
    """
    settings = json.dumps(
        {
            "parser": name_of(parser),
            "input_bytes": len(contents),
            "limits": asdict(limits),
            "parent": os.getpid(),
        }
    )
    module_path = [str(Path(entry).absolute()) for entry in sys.path]
    try:
        child = subprocess.run(  # noqa: S603 - our own interpreter and our own arguments
            # -I: neither the current folder, nor user packages, nor variables matter.
            [sys.executable, "-I", "-W", "ignore", "-c", _CHILD, settings, *module_path],
            input=contents,
            capture_output=True,
            env={},
            # Only for a process that hangs: on a busy machine a second of work takes minutes.
            timeout=600 + 10 * limits.cpu_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputRejectedError("parsing took too long and was stopped") from None
    if not child.stdout.startswith(READY):
        reason = (child.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[
            -1
        ]
        raise RuntimeError(f"the parsing process did not start: {reason}")
    verdict, answer = child.stdout[1:2], child.stdout[2:]
    if child.returncode == 0 and verdict == ACCEPTED:
        return answer
    if child.returncode == 0 and verdict == REFUSED:
        raise InputRejectedError(answer.decode("utf-8", "replace"))
    raise InputRejectedError(
        f"parsing {_death(child.returncode)}; the limits are memory_bytes {limits.memory_bytes} "
        f"and cpu_seconds {limits.cpu_seconds}"
    )


@contextmanager
def untrusted_answer(refusal: EdgecleanError) -> Iterator[None]:
    """Within, a child's answer is read: whoever took the child over may answer anything.

    Args:
        refusal: raised where the answer is not of its form.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, struct.error):
        raise refusal from None


def name_of(parser: Parser) -> str:
    """The parser as ``module:name``, by which another process imports the same function.

    Raises:
        ValueError: it is no plain function at the top of a module that can be imported.
    """
    module = inspect.getmodule(parser)
    name = getattr(parser, "__name__", "")
    if (
        module is None
        or module.__name__ == "__main__"
        or not inspect.isfunction(parser)
        or getattr(module, name, None) is not parser
    ):
        raise ValueError(
            f"the parser {parser!r} cannot be found by its name in another process; give a plain "
            "function at the top of a module"
        )
    return f"{module.__name__}:{name}"


def _death(code: int) -> str:
    if code >= 0:
        return f"ended its process with code {code}"
    if code == -signal.SIGXCPU:
        return "used up its processor time"
    return f"killed its process ({signal.Signals(-code).name})"
