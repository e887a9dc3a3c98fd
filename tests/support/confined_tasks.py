"""What tests do in a confined process."""

from __future__ import annotations

import importlib
import os
import time
from importlib import metadata

from exporters.confined import Parcel


def import_task(given: Parcel) -> Parcel:
    """Import a module, whatever it does then, and list what is installed before and after."""
    before = _installed()
    try:
        importlib.import_module(given.facts["module"])
    except BaseException as error:  # noqa: BLE001 - it may do anything
        said = type(error).__name__
    else:
        said = "imported"
    return Parcel(facts={"said": said, "packages_before": before, "packages_after": _installed()})


def daemon_task(given: Parcel) -> Parcel:
    """Leave processes that have left the group, the session and their parent; name them.

    With "then" as "hang" it never ends, and with "crash" it crashes.
    """
    reading, writing = os.pipe()
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(writing, f"{os.getpid()}\n".encode())
                time.sleep(600)
            os._exit(0)
    with os.fdopen(reading) as stream:
        left = [int(stream.readline()) for _ in range(3)]
    print(f"left behind: {left}", flush=True)  # noqa: T201
    if given.facts["then"] == "hang":
        time.sleep(600)
    if given.facts["then"] == "crash":
        os.abort()
    return Parcel(facts={"left": left})


def _installed() -> list[str]:
    return sorted(f"{one.name} {one.version}" for one in metadata.distributions())
