"""The exporter of ncnn: what it takes and makes; `exporters.engines.ncnn_engine` does the work."""

from __future__ import annotations

from typing import ClassVar

from exporters.confined_runtime import ConfinedExporter
from exporters.engines.ncnn_engine import PARAM, WEIGHTS
from exporters.engines.tasks import SHAPE
from exporters.strided_slices import pooled_slices


class NcnnExporter(ConfinedExporter):
    """The ncnn runtime on a CPU (see `exporters.protocol.Exporter`)."""

    name = "ncnn"
    needs = "edgeclean[ncnn]"
    packages: ClassVar = {"ncnn": ((1, 0, 20261020), (2,)), "pnnx": ((20261020,), (20280000,))}
    precisions = ("fp32", "fp16")
    files = (PARAM, WEIGHTS, SHAPE)
    engine = "exporters.engines.ncnn_engine:NcnnEngine"
    computes: ClassVar = {
        "fp32": "weights in FP32, computed in FP32 (use_fp16_* and use_bf16_* off)",
        "fp16": "weights stored in FP16, computed in FP16 where the processor can "
        "(use_fp16_packed, use_fp16_storage, use_fp16_arithmetic)",
    }

    def prepared(self, model: bytes) -> bytes:
        """The file without the strided slices that ncnn lacks."""
        return pooled_slices(model)
