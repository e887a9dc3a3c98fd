"""How the kit keeps what it made, and how it ends. Plain Python 3.6: it runs on the device."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Optional

SPARE_BYTES = 64 * 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it


class Stop(Exception):  # noqa: N818 - not every end is an error of ours
    """An end that the user must hear of: a sentence, and the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def need_space(folder: Path, needed: int) -> None:
    """Stop before work that cannot be stored."""
    if shutil.disk_usage(str(folder)).free < needed:
        raise Stop(9, full_disk(folder))


def nearly_full(folder: Path) -> bool:
    """Whether a write that just failed has probably failed for want of room."""
    return shutil.disk_usage(str(folder)).free < SPARE_BYTES // 16


def full_disk(place: Any) -> str:
    """The sentence for a disk without room."""
    return "the disk is full at %s; make room and run again: what is done is kept" % place


def hold(lock: Any) -> None:
    """Wait up to half a minute for a run whose connection was lost to notice."""
    for _ in range(30):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another run is at work here; waiting")
            time.sleep(1)
    raise Stop(2, "another run is at work in this folder; wait for it, or give another --work")


def file_hash(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write beside and rename: a reader sees the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(str(partial), str(path))


def say(message: str) -> None:
    """Progress, at once: a lost connection shows here."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def find_trtexec(asked: Optional[str]) -> str:
    """The asked one, the one on the path, or JetPack's."""
    for place in [asked] if asked else [shutil.which("trtexec"), TRTEXEC]:
        if place and os.access(place, os.X_OK):
            return place
    raise Stop(
        7,
        "trtexec was not found (%s); install JetPack's TensorRT samples (the package "
        "libnvinfer-bin), or give --trtexec" % (asked or "PATH, " + TRTEXEC),
    )


def engine_key(onnx_sha256: str, tensorrt: str, capability: str, precision: str) -> str:
    """The name of an engine: it is good for exactly these four."""
    whole = "\n".join((onnx_sha256, tensorrt, capability, precision))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def engine_name(
    key: str, workspace_mib: int, dla_core: Optional[int], gpu_fallback: bool = True
) -> str:
    """What an engine's files are called: its key, and all that it was asked to be built with.

    Less scratch memory leaves fewer ways to compute a layer, and an engine that may fall back on
    the GPU is not one that may not, so neither stands in for the other.
    """
    name = "%s-%dmib" % (key, workspace_mib)
    if dla_core is not None:
        name += "-dla%d" % dla_core
        name += "" if gpu_fallback else "-alone"
    return name
