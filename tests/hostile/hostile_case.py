"""One hostile file: its story, how to make it, what must be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MODEL_TOML = """
architecture = "net.py:tiny"
input-shape = [3, 4, 4]
classes = 2
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
"""
CODE = """
from torch import nn
def tiny(classes):
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, classes)
    )
"""
CANARY = "canary"  # where code that ran leaves its mark, in the case's folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A file that a stranger might send.

    Attributes:
        kind: what sort of file it is.
        name: of the case, unique in its kind.
        story: who would make such a file, or what it would do to a careless reader; one line.
        build: puts the file, and what belongs to it, into an empty folder; gives the words of the
            command that reads it. The folder is the command's working folder.
        message: what the error must say.
        code: the exit code; 2 for files that are the user's own (see `edgeclean.errors`).
        bait: whether a careless `pickle.load` of the file would leave the canary.
    """

    kind: str
    name: str
    story: str
    build: Callable[[Path], list[str]]
    message: str
    code: int = 3
    bait: bool = False

    @property
    def id(self) -> str:
        """For the test's name."""
        return f"{self.kind}: {self.name}"


def compressing(folder: Path, name: str, content: bytes | None, *words: str) -> list[str]:
    """Write a checkpoint with what describes it, and compress it."""
    if content is not None:
        (folder / name).write_bytes(content)
    if not words:
        (folder / "net.py").write_text(CODE, encoding="utf-8")
        (folder / "model.toml").write_text(MODEL_TOML, encoding="utf-8")
        words = ("--model", "model.toml")
    return ["compress", name, *words, "-o", "out"]


def hole(path: Path, size: int, head: bytes = b"") -> None:
    """A file that is as large as it says and takes no room on the disk."""
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(size)
