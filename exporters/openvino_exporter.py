"""OpenVINO on a CPU: what it takes and makes; `exporters.engines.openvino_engine` does the work."""

from __future__ import annotations

from typing import ClassVar

from exporters.confined_runtime import ConfinedExporter
from exporters.engines.openvino_engine import WEIGHTS, XML
from exporters.precision.int8 import stored_in_int8


class OpenVINOExporter(ConfinedExporter):
    """OpenVINO on a CPU (see `exporters.protocol.Exporter`)."""

    name = "openvino"
    needs = "edgeclean[openvino]"
    packages: ClassVar = {"openvino": ((2026, 4), (2027,))}
    precisions = ("fp32", "fp16", "int8")
    files = (XML, WEIGHTS)
    engine = "exporters.engines.openvino_engine:OpenVINOEngine"
    computes: ClassVar = {
        "fp32": "weights in FP32, computed in FP32 (INFERENCE_PRECISION_HINT f32)",
        "fp16": "weights stored in FP16, computed in FP32 (INFERENCE_PRECISION_HINT f32)",
        "int8": "int8 between the file's Q/DQ, all else in FP32 (INFERENCE_PRECISION_HINT f32)",
    }

    def prepared(self, model: bytes) -> bytes:
        """The file itself; for int8 with its weights stored as int8."""
        return stored_in_int8(model) if self.settings.precision == "int8" else model
