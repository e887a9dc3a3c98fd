"""Converters and runtimes that do what real ones have been seen to do, and worse."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclean.errors import InputRejectedError


class Polite:
    """Knows the sum of all pixels."""

    input_shape = 3, 8, 8
    batch = None

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        del precision, threads
        self._file = folder / "file"

    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        del precision, shape
        (folder / "file").write_bytes(model[:10])

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return images.sum((2, 3))


class Crashing(Polite):
    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        Polite.write(model, precision, shape, folder)
        print("half of it is there")  # noqa: T201
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSEGV)

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        os.kill(os.getpid(), signal.SIGABRT)
        return images


class Killed(Polite):
    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        Polite.write(model, precision, shape, folder)
        os.kill(os.getpid(), signal.SIGKILL)


class Hanging(Polite):
    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"left behind: {left.pid}", flush=True)  # noqa: T201
        time.sleep(600)


class Spinning(Polite):
    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        while True:
            pass


class Eating(Polite):
    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        np.ones(2**40, np.uint8)


class Writing(Polite):
    """Fills the disk."""

    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        with (folder / "file").open("wb") as stream:
            for _ in range(1000):
                stream.write(bytes(2**20))


class Idle(Polite):
    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        pass


class Lying(Polite):
    said = b"\xff" * 100

    @classmethod
    def write(cls, model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        del model, precision, shape, folder
        for descriptor in range(3, 32):  # one of them is where the process answers
            with suppress(OSError):
                os.write(descriptor, cls.said)
        os._exit(0)


class Nesting(Lying):
    said = struct.pack("<Q", 10**5) + b"[" * 10**5


class Intruding(Polite):
    """Tries everything that a converter must not do, and writes down what it could."""

    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        outside = Path(os.environ["HOME"]).parents[1]  # where the process's own folder lies
        tries: dict[str, Callable[[], object]] = {
            "socket": socket.socket,
            "tcp": lambda: socket.create_connection(("127.0.0.1", 9), 1),
            "fetch": lambda: urllib.request.urlopen("http://127.0.0.1:9/", timeout=1),
            "name": lambda: socket.getaddrinfo("example.invalid", 80),
            "write": lambda: (outside / "intruder").write_text("x"),
            "folder": lambda: (outside / "intruder").mkdir(),
            "package": lambda: Path(np.__file__).with_name("intruder.py").write_text("x"),
            "remove": lambda: (outside / "precious").unlink(),
            "truncate": lambda: os.truncate(outside / "precious", 0),
            "rename": lambda: (folder / "mine").rename(outside / "intruder"),
            "shell": lambda: _shell(outside),
            "pip": _pip,
            "signal": lambda: os.kill(os.getppid(), signal.SIGTERM),
        }
        (folder / "mine").write_text("mine")
        done = [name for name, attempt in tries.items() if _succeeds(attempt)]
        (folder / "file").write_text(json.dumps(done))


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return False
    return True


def _shell(outside: Path) -> None:
    subprocess.run(["sh", "-c", f"echo x > '{outside}/intruder'"], check=True)


def _pip() -> None:
    words = [sys.executable, "-m", "pip", "install", "--target", "/usr/intruder", "wheel"]
    subprocess.run(words, check=True, capture_output=True)


class Refusing(Polite):
    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        raise InputRejectedError("it has an operator\x1b[31m that nobody knows")
