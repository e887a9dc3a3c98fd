"""What tests do in a confined process."""

from __future__ import annotations

import ctypes
import importlib
import os
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from edgeclean.child.parcel import Parcel


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
    Path("left").write_text(f"left behind: {left}\n")
    if given.facts["then"] == "hang":
        time.sleep(600)
    if given.facts["then"] == "crash":
        os.abort()
    return Parcel(facts={"left": left})


def meddling_task(given: Parcel) -> Parcel:
    """Try to change what the system keeps of a file, and to share memory; list what was done."""
    file = given.facts["file"]
    opened, mine = os.open(file, os.O_RDONLY), (os.getuid(), os.getgid())
    tries: dict[str, Callable[[], object]] = {
        "chmod": lambda: Path(file).chmod(0o640),
        "fchmod": lambda: os.fchmod(opened, 0o777),
        "chown": lambda: os.chown(file, *mine),
        "fchown": lambda: os.fchown(opened, *mine),
        "lchown": lambda: os.lchown(file, *mine),
        "utime": lambda: os.utime(file, (0, 0)),
        "futimens": lambda: os.utime(opened, (0, 0)),
        "lutimes": lambda: os.utime(file, (0, 0), follow_symlinks=False),
        "setxattr": lambda: os.setxattr(file, "user.x", b"1"),
        "lsetxattr": lambda: os.setxattr(file, "user.x", b"1", follow_symlinks=False),
        "fsetxattr": lambda: os.setxattr(opened, "user.x", b"1"),
        "removexattr": lambda: os.removexattr(file, "user.mine"),
        "fremovexattr": lambda: os.removexattr(opened, "user.mine"),
    }
    tries |= {name: _call(number, words) for name, number, words in _raw_calls(os.fsencode(file))}
    return Parcel(facts={"done": [name for name, attempt in tries.items() if _is_done(attempt)]})


def _raw_calls(file: bytes) -> list[tuple[str, int, tuple[int | bytes, ...]]]:
    """Name, number and arguments of what Python has no function for; syscalls(2)."""
    here, times = -100, bytes(32)
    calls: list[tuple[str, int, tuple[int | bytes, ...]]] = [
        ("fchmodat2", 452, (here, file, 0o777, 0)),
        ("setxattrat", 463, (here, file, 0, b"user.x", bytes(16), 16)),
        ("removexattrat", 466, (here, file, 0, b"user.mine")),
    ]
    if os.uname().machine == "x86_64":
        calls += [("old utime", 132, (file, times)), ("utimes", 235, (file, times))]
        calls += [("futimesat", 261, (here, file, times))]
        calls += [("shmget", 29, (0, 4096, 0o1600)), ("semget", 64, (0, 1, 0o1600))]
        calls += [("msgget", 68, (0, 0o1600))]
        calls += [("mq_open", 240, (b"edgeclean-test", 0o102, 0o600, 0))]
    return calls


def _call(number: int, given: tuple[int | bytes, ...]) -> Callable[[], object]:
    def attempt() -> None:
        library = ctypes.CDLL(None, use_errno=True)
        words = [one if isinstance(one, bytes) else ctypes.c_long(one) for one in given]
        if library.syscall(ctypes.c_long(number), *words) < 0:
            raise OSError(ctypes.get_errno(), "refused")

    return attempt


def _is_done(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _installed() -> list[str]:
    return sorted(f"{one.name} {one.version}" for one in metadata.distributions())
