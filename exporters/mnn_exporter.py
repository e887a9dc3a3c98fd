"""MNN on a CPU: what it takes and makes; `exporters.engines.mnn_engine` does the work."""

from __future__ import annotations

from typing import ClassVar

from exporters.confined_runtime import ConfinedExporter
from exporters.engines.mnn_engine import FILE


class MNNExporter(ConfinedExporter):
    """MNN on a CPU (see `exporters.protocol.Exporter`)."""

    name = "mnn"
    needs = "edgeclean[mnn]"
    packages: ClassVar = {"mnn": ((3, 6), (4,))}
    precisions = ("fp32", "fp16", "int8")
    calibrates = True  # of the float32 file; of weights alone, so that no image is looked at
    files = (FILE,)
    engine = "exporters.engines.mnn_engine:MNNEngine"
    computes: ClassVar = {
        "fp32": "weights in FP32, computed in FP32 (precision high)",
        "fp16": "weights stored in FP16, computed in FP16 where the processor can (precision low)",
        "int8": "weights stored in INT8, each channel with its own scale, computed in FP32 "
        "(precision high)",
    }
