"""What is sent to the process that reads an ONNX file: the file, and what the user said of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user said of a network; None is for the file to say.

    Attributes:
        input_shape: channels, height and width of an image, for a graph that leaves them free.
        classes: the columns of the wanted output, for a graph with several outputs.
        output: the name of the wanted output.
    """

    input_shape: tuple[int, int, int] | None = None
    classes: int | None = None
    output: str | None = None


NOTHING = Asked()


def with_question(asked: Asked, contents: bytes) -> bytes:
    """Return the file's bytes behind one line that says what was asked; ours, not the file's."""
    return json.dumps(asdict(asked)).encode() + b"\n" + contents


def question_of(message: bytes) -> tuple[Asked, bytes]:
    """Return both parts of `with_question`."""
    line, _, contents = message.partition(b"\n")
    entries = json.loads(line)
    shape = entries.pop("input_shape")
    return Asked(input_shape=None if shape is None else tuple(shape), **entries), contents
