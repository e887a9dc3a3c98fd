"""What is sent to the process that reads an ONNX file: the file, and what the user said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from edgeclean.child.parcel import Parcel


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
FILE = "model.onnx"


def with_question(asked: Asked, files: Mapping[str, bytes]) -> Parcel:
    """Return what was asked with the files it is asked of."""
    return Parcel(facts={"asked": asdict(asked)}, files=files)


def question_of(given: Parcel) -> Asked:
    """Return what `with_question` was asked; for tasks."""
    entries = given.facts["asked"]
    shape = entries["input_shape"]
    return Asked(**{**entries, "input_shape": None if shape is None else tuple(shape)})
