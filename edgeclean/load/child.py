"""The parsing process: it limits itself, parses stdin and answers on stdout.

The answer is ``!`` once the limits stand, then ``+`` and the parsed bytes or ``-`` and one line.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from pathlib import Path

from edgeclean.errors import InputRejectedError
from edgeclean.load.isolation import ACCEPTED, READY, REFUSED, Parser, name_of
from edgeclean.load.limits import LoadLimits
from edgeclean.processes import end_with_parent


def main(settings_text: str) -> None:
    """Do as `run`; a parent that is ended takes this process along, whatever it is busy with."""
    end_with_parent(json.loads(settings_text)["parent"])
    run(settings_text)


def run(settings_text: str) -> None:
    """Parse all of stdin by the named parser; the settings come from the parent, not the input."""
    settings = json.loads(settings_text)
    limits = LoadLimits(**settings["limits"])
    parser = _parser(settings["parser"])  # imports what it needs, before memory is limited
    limit_process(limits, settings["input_bytes"])
    # Native code prints to descriptor 1 as it likes: the answer gets a descriptor of its own.
    with os.fdopen(os.dup(1), "wb") as answer_to:
        os.dup2(2, 1)
        answer_to.write(READY)
        answer_to.flush()
        verdict, text = answer(parser, sys.stdin.buffer.read(), limits)
        answer_to.write(verdict + text)


def limit_process(limits: LoadLimits, input_bytes: int) -> None:
    """Lower this process's own limits for good; what is already mapped and used does not count."""
    memory = mapped_bytes() + limits.memory_bytes + 5 * input_bytes
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + limits.cpu_seconds + input_bytes // 2**25
    for limit, bound in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        # The hard limit for seconds lies higher: at the soft one a signal first names the reason.
        most = bound + 5 if limit == resource.RLIMIT_CPU else bound
        if hard != resource.RLIM_INFINITY:  # nobody but root may raise it
            bound, most = min(bound, hard), min(most, hard)
        resource.setrlimit(limit, (bound, most))


def answer(parser: Parser, contents: bytes, limits: LoadLimits) -> tuple[bytes, bytes]:
    """Return the verdict with the parsed bytes, or with the reason of a refusal."""
    try:
        return ACCEPTED, parser(contents, limits)
    except InputRejectedError as error:
        return REFUSED, str(error).encode("utf-8", "replace")
    except MemoryError:
        message = f"parsing needs more than the limit memory_bytes {limits.memory_bytes}"
        return REFUSED, message.encode()


def mapped_bytes() -> int:
    """Return the bytes of address space in use; 64 GiB on macOS, which enforces no limit on it."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except OSError:
        return 64 * 1024**3
    return pages * os.sysconf("SC_PAGE_SIZE")


def _parser(name: str) -> Parser:
    """The function that the parent named by `isolation.name_of`.

    Raises:
        ValueError: what is found there is not a function that the parent would name so.
    """
    module, _, function = name.partition(":")
    parser: Parser = getattr(importlib.import_module(module), function)
    if name_of(parser) != name:
        raise ValueError(f"{name} is another module's {name_of(parser)}; name the function itself")
    return parser
