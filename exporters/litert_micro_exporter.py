"""LiteRT for Microcontrollers: what it takes and makes, and how much memory it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from edgeclean.child.parcel import Parcel
from edgeclean.errors import ToolchainError
from exporters.confined import run_confined
from exporters.engines.litert_engine import FILE
from exporters.litert_exporter import LiteRTExporter

ARENA = "exporters.engines.litert_micro_engine:arena_task"


class LiteRTMicroExporter(LiteRTExporter):
    """LiteRT for Microcontrollers (see `exporters.protocol.Exporter`)."""

    name = "litert-micro"
    needs = "edgeclean[litert-micro]"
    packages: ClassVar = {"tflite-micro": ((0,), (1,)), **LiteRTExporter.packages}
    precisions = ("fp32", "int8")
    engine = "exporters.engines.litert_micro_engine:LiteRTMicroEngine"
    computes: ClassVar = {
        "fp32": "in FP32 by reference kernels, whose times here say nothing of a microcontroller; "
        "the input is [n, h, w, c]",
        "int8": "all in INT8, from the input to the logits, by reference kernels, whose times here "
        "say nothing of a microcontroller; the input is [n, h, w, c]",
    }

    def arena_bytes(self, files: Mapping[str, bytes]) -> int:
        """The bytes of memory that the interpreter takes of its arena for this network.

        Measured on this machine, with pointers of 64 bits: the tensors take as much on a
        microcontroller, and what describes them takes less.

        Raises:
            InputRejectedError: the interpreter cannot load the file.
            ToolchainError: it is not installed, or crashed.
        """
        doing = f"{self.title}: measuring its arena"
        answer = run_confined(ARENA, Parcel(files={FILE: files[FILE]}), doing, self.limits)
        total = answer.facts.get("total")
        if not isinstance(total, int) or not 0 < total < 2**40:
            raise ToolchainError(f"{doing} answered nonsense")
        return total
