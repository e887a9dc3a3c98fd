"""LiteRT on a CPU: what it takes and makes; `exporters.engines.litert_engine` does the work."""

from __future__ import annotations

from typing import ClassVar

from exporters.confined_runtime import ConfinedExporter
from exporters.engines.litert_engine import FILE


class LiteRTExporter(ConfinedExporter):
    """LiteRT with XNNPACK on a CPU (see `exporters.protocol.Exporter`)."""

    name = "litert"
    needs = "edgeclean[litert]"
    packages: ClassVar = {
        "ai-edge-litert": ((2, 3), (3,)),
        "litert-torch": ((0, 10), (0, 11)),
        "ai-edge-quantizer": ((0, 10), (0, 11)),
    }
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8")
    calibrates = True
    files = (FILE,)
    engine = "exporters.engines.litert_engine:LiteRTEngine"
    computes: ClassVar = {
        "fp32": "weights in FP32, computed in FP32 by XNNPACK; the input is [n, h, w, c]",
        "fp16": "weights stored in FP16, computed in FP32 by XNNPACK; the input is [n, h, w, c]",
        "int8": "all in INT8, from the input to the logits; the input is [n, h, w, c]",
    }
