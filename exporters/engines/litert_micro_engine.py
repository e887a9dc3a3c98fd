"""LiteRT for Microcontrollers: a network as `litert_engine` converts it, run by its interpreter.

Its kernels here are those of reference, in C++ without any processor's instructions: what they
compute is what a microcontroller computes, and how long they take says nothing of one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from exporters.confined import imported
from exporters.engines.litert_engine import FILE, LiteRTEngine, from_integers, to_integers

NEEDS = "edgeclean[litert-micro]"
ARENA = 2**27  # of memory to try in: where it does not fit, the interpreter crashes
_USED = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")


class LiteRTMicroEngine(LiteRTEngine):
    """LiteRT for Microcontrollers in its process (see `exporters.engines.tasks.Engine`)."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Load into an arena that is large enough for most.

        Raises:
            InputRejectedError: the interpreter cannot load the file.
            ToolchainError: it is not installed.
        """
        del precision, threads  # they are the file's; it has no threads
        runtime = imported("tflite_micro", NEEDS).runtime
        try:
            contents = (folder / FILE).read_bytes()
            self._interpreter = runtime.Interpreter.from_bytes(contents, arena_size=ARENA)
            self._given: Mapping[str, Any] = self._interpreter.get_input_details(0)
            self._made: Mapping[str, Any] = self._interpreter.get_output_details(0)
            batch, height, width, channels = map(int, self._given["shape"])
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(
                f"LiteRT for Microcontrollers cannot load it: {first_line(error)}"
            ) from error
        self.batch: int | None = batch
        self.input_shape = channels, height, width

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of exactly one batch [n, c, h, w].

        Raises:
            InputRejectedError: the interpreter cannot run it.
        """
        try:
            last = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
            given = to_integers(last, self._given["dtype"], *_scale(self._given))
            self._interpreter.set_input(given, 0)
            self._interpreter.invoke()
            made = self._interpreter.get_output(0)
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(
                f"LiteRT for Microcontrollers cannot run it: {first_line(error)}"
            ) from error
        return from_integers(made, *_scale(self._made))

    def print_arena(self) -> None:
        """Let the interpreter print what it took of its arena, on the standard error."""
        self._interpreter.print_allocations()


def arena_task(given: Parcel) -> Parcel:
    """Measure what a network takes of the arena; `LiteRTMicroExporter.arena_bytes` asks for it.

    Raises:
        InputRejectedError: the interpreter cannot load the file, or did not say.
        ToolchainError: it is not installed.
    """
    folder, said = Path("network"), Path("said")
    folder.mkdir()
    (folder / FILE).write_bytes(given.files[FILE])
    engine = LiteRTMicroEngine(folder, "int8", 1)
    sys.stderr.flush()
    kept = os.dup(2)
    with said.open("wb") as stream:  # it prints from C++, and has no other way to say it
        os.dup2(stream.fileno(), 2)
        engine.print_arena()
        os.dup2(kept, 2)
    used = {name: int(number) for name, number in _USED.findall(said.read_text("utf-8", "replace"))}
    if set(used) != {"total", "head", "tail"}:
        raise InputRejectedError("LiteRT for Microcontrollers did not say what its arena holds")
    return Parcel(facts=used)


def _scale(details: Mapping[str, Any]) -> tuple[float, int]:
    found = details["quantization_parameters"]
    scales, zeros = found["scales"], found["zero_points"]
    return (float(scales[0]), int(zeros[0])) if len(scales) else (0.0, 0)
