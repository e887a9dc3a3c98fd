"""What a process can give up for good before it runs code that nobody here wrote. Linux.

A converter of somebody else's has been seen to install packages and to call home when it was
imported. A confined process, and all that it starts, can reach no network and can change no file
outside of one folder, whatever user runs it. None of it can be taken back.

The filter of calls (seccomp) refuses sockets. It also refuses what Landlock does not look at, and
so everywhere, in the own folder too: changes of rights, owner, times and extended attributes, and
System V's and POSIX's shared memory, semaphores and queues.

Not covered: reading; that reading sets a file's time of access; locks, and the flags that ioctl(2)
sets of a file that may be read; before Linux 6.2 truncation, before 6.12 signals to other processes
of the user; on processors other than x86-64 and AArch64, all that the filter does.

Sources: seccomp(2), landlock(7), Linux's Documentation/userspace-api/seccomp_filter.rst and
landlock.rst; the numbers of calls are those of arch/x86/entry/syscalls/syscall_64.tbl and of
include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# By machine: audit architecture, number of socket(2), and the calls that are refused with EPERM.
_SYSTEMS = {
    "x86_64": (
        0xC000003E,
        41,
        (
            *(90, 91, 268),  # chmod, fchmod, fchmodat
            *(92, 93, 94, 260),  # chown, fchown, lchown, fchownat
            *(132, 235, 261, 280),  # utime, utimes, futimesat, utimensat
            *(188, 189, 190, 197, 198, 199),  # setxattr, l-, f-; removexattr, l-, f-
            *(29, 30, 31),  # shmget, shmat, shmctl
            *(64, 65, 66, 220),  # semget, semop, semctl, semtimedop
            *(68, 69, 70, 71),  # msgget, msgsnd, msgrcv, msgctl
            *(240, 241),  # mq_open, mq_unlink
        ),
    ),
    "aarch64": (
        0xC00000B7,
        198,
        (
            *(52, 53),  # fchmod, fchmodat
            *(54, 55),  # fchownat, fchown
            88,  # utimensat
            *(5, 6, 7, 14, 15, 16),  # setxattr, l-, f-; removexattr, l-, f-
            *(194, 195, 196),  # shmget, shmctl, shmat
            *(190, 191, 192, 193),  # semget, semctl, semtimedop, semop
            *(186, 187, 188, 189),  # msgget, msgctl, msgrcv, msgsnd
            *(180, 181),  # mq_open, mq_unlink
        ),
    ),
}
_EVERYWHERE = 452, 463, 466, 469  # fchmodat2, setxattrat, removexattrat, file_setattr
# By io_uring_setup(2), which has one number everywhere, sockets are made and attributes set too.
_IO_URING_SETUP, _X32_BIT = 425, 0x40000000
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # of classic BPF
_ALLOW, _REFUSE, _NOT_PERMITTED = 0x7FFF0000, 0x00050000 | 13, 0x00050000 | 1  # EACCES, EPERM
_RULESET, _ADD_RULE, _RESTRICT = 444, 445, 446  # of Landlock, the same on all architectures
_VERSION, _BELOW = 1, 1
_ON_FILES = 1 << 1 | 1 << 14  # write, truncate
# Write, remove, make of every kind; linking across folders and truncation, where the kernel knows.
_WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))
_SINCE = {2: 1 << 13, 3: 1 << 14}
_ALL_TCP, _OTHERS_SOCKETS_AND_SIGNALS = 3, 3


def quiet_environment(folder: Path) -> dict[str, str]:
    """Return the variables of a confined process: no home, no proxy that answers, no pip.

    Args:
        folder: an empty folder that stands in for the home.
    """
    home, nowhere = str(folder), "http://127.0.0.1:9"  # where nobody listens
    proxies = {name: nowhere for name in ("http_proxy", "https_proxy", "all_proxy")}
    proxies |= {name.upper(): nowhere for name in proxies}
    return {
        "HOME": home,
        "TMPDIR": home,
        "XDG_CACHE_HOME": home,
        "XDG_CONFIG_HOME": home,
        "PATH": "",
        "LC_ALL": "C.UTF-8",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "DO_NOT_TRACK": "1",
        **proxies,
    }


def confine(folder: Path) -> dict[str, bool]:
    """Give up the network, and writing anywhere but below a folder, in this process for good.

    To be called before a second thread starts: it binds this thread and what it starts.

    Args:
        folder: what may still be written below it.

    Returns:
        Whether the kernel holds to each, "network" and "writes". Where it cannot, Python alone
        refuses sockets, and what native code does is not bound.
    """
    _refuse_sockets_in_python()
    if sys.platform != "linux":
        return {"network": False, "writes": False}
    library = ctypes.CDLL(None, use_errno=True)
    unprivileged = library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    writes = unprivileged and _write_only_below(library, folder)
    return {"network": unprivileged and _without_calls(library), "writes": writes}


def in_words(held: Mapping[str, bool]) -> str:
    """Return what `confine` achieved, as the end of a sentence."""
    network = "no network (seccomp)" if held["network"] else "no network for Python alone"
    writes = "writes in its own folder alone (Landlock)" if held["writes"] else "writes not bound"
    return f"{network}, {writes}"


def _refuse_sockets_in_python() -> None:
    def hook(event: str, _given: Any) -> None:
        if event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
            raise PermissionError(f"a confined process has no network: {event}")

    sys.addaudithook(hook)


def _without_calls(library: ctypes.CDLL) -> bool:
    """Let the kernel refuse new sockets, without which nothing is sent, and what Landlock allows.

    Source: seccomp(2); a step jumps by as many steps as its two middle numbers say, where it holds
    and where it does not.
    """
    if platform.machine() not in _SYSTEMS or sys.maxsize <= 2**32:
        return False
    architecture, socket, others = _SYSTEMS[platform.machine()]
    others += _EVERYWHERE
    steps = (
        (_LOAD, 0, 0, 4),  # of the call: its architecture
        (_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, 0),  # its number
        (_IF_AT_LEAST, len(others) + 4, 0, _X32_BIT),
        (_IF_EQUAL, len(others) + 3, 0, socket),
        (_IF_EQUAL, len(others) + 2, 0, _IO_URING_SETUP),
        *((_IF_EQUAL, len(others) - place, 0, call) for place, call in enumerate(others)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _REFUSE),
    )
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    handed = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), _address(program)))
    return bool(library.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, handed, 0, 0) == 0)


def _write_only_below(library: ctypes.CDLL, folder: Path) -> bool:
    """Let the kernel refuse changes outside of a folder, but for what is sent to /dev/null."""
    version = library.syscall(_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    if version < 1:
        return False
    files = _WRITES | sum(right for since, right in _SINCE.items() if version >= since)
    tcp = _ALL_TCP if version >= 4 else 0
    scoped = _OTHERS_SOCKETS_AND_SIGNALS if version >= 6 else 0
    asked = struct.pack("=QQQ", files, tcp, scoped)[: 8 * (1 + (version >= 4) + (version >= 6))]
    rules = library.syscall(_RULESET, asked, ctypes.c_size_t(len(asked)), ctypes.c_uint32(0))
    if rules < 0:
        return False
    try:
        allowed = ((folder, files), (Path(os.devnull), files & _ON_FILES))
        return (
            all(_allow(library, rules, path, rights) for path, rights in allowed)
            and library.syscall(_RESTRICT, rules, ctypes.c_uint32(0)) == 0
        )
    finally:
        os.close(rules)


def _allow(library: ctypes.CDLL, rules: int, path: Path, rights: int) -> bool:
    with suppress(OSError):
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("=Qi", rights, place)
            done = library.syscall(_ADD_RULE, rules, _BELOW, rule, ctypes.c_uint32(0))
            return bool(done == 0)
        finally:
            os.close(place)
    return False


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)
