"""Keep the kit's engines and results, and end it. Plain Python 3.6: it runs on the device."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Optional

SPARE_BYTES = 64 * 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it


class Stop(Exception):  # noqa: N818 - not every end is an error of ours
    """The end of a run, with a sentence for the user and the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def need_space(folder: Path, needed: int) -> None:
    """Stop before work whose result cannot be stored."""
    if shutil.disk_usage(str(folder)).free < needed:
        raise Stop(9, full_disk(folder))


def nearly_full(folder: Path) -> bool:
    """Return whether a write that just failed has probably failed because the disk is full."""
    return shutil.disk_usage(str(folder)).free < SPARE_BYTES // 16


def full_disk(place: Any) -> str:
    """Return the sentence for a disk without room."""
    return "the disk is full at %s; make room and run again: what is done is kept" % place


def hold(lock_file: Any) -> None:
    """Take the lock; wait up to half a minute for a run that has lost its connection to end."""
    for _ in range(30):
        try:
            return fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            log("another run is at work here; waiting")
            time.sleep(1)
    raise Stop(2, "another run is at work in this folder; wait for it, or give another --work")


def exit_code(work: Callable[[], None]) -> int:
    """Do the work and return 0; where it ends otherwise, say so in a sentence."""
    try:
        work()
        return 0
    except Stop as stop:
        sys.stderr.write("error: %s\n" % stop)
        return stop.code
    except BrokenPipeError:
        return 1  # nobody listens any more; finished work is kept
    except OSError as error:
        if error.errno in FULL:
            sys.stderr.write("error: %s\n" % full_disk(error.filename or "the work folder"))
            return 9
        place, reason = error.filename or "a file", error.strerror or error
        sys.stderr.write("error: %s: %s; another --work may be writable\n" % (place, reason))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped; what is done is kept: run again to go on\n")
        return 130


def write_result(folder: Path, run: Callable[[], Dict[str, Any]]) -> None:
    """Write what the run finds, alone in the work folder, and forget its rounds."""
    with (folder / "lock").open("w") as lock:
        hold(lock)
        result = run()
    write_json(folder / "result.json", result)
    shutil.rmtree(str(folder / "rounds"), ignore_errors=True)
    log("done: %s" % (folder / "result.json"))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a file beside and rename it, so that a reader sees the old one or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(str(partial), str(path))


def log(message: str) -> None:
    """Write a line of progress at once: a lost connection shows here."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def find_trtexec(given: Optional[str]) -> str:
    """Return the path of trtexec: the given one, else the one on PATH, else JetPack's."""
    for place in [given] if given else [shutil.which("trtexec"), TRTEXEC]:
        if place and os.access(place, os.X_OK):
            return place
    raise Stop(
        7,
        "trtexec was not found (%s); install JetPack's TensorRT samples (the package "
        "libnvinfer-bin), or give --trtexec" % (given or "PATH, " + TRTEXEC),
    )


def engine_key(onnx_sha256: str, tensorrt: str, capability: str, precision: str) -> str:
    """Return the key of an engine, which is valid for exactly these four."""
    whole = "\n".join((onnx_sha256, tensorrt, capability, precision))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def engine_name(
    key: str, workspace_mib: int, dla_core: Optional[int], gpu_fallback: bool = True
) -> str:
    """Return the name of an engine's files: its key, and the options it was built with.

    Less scratch memory leaves fewer kernels for a layer, and an engine that may fall back on the
    GPU is not one that may not, so neither stands in for the other.
    """
    name = "%s-%dmib" % (key, workspace_mib)
    if dla_core is not None:
        name += "-dla%d" % dla_core
        name += "" if gpu_fallback else "-alone"
    return name
