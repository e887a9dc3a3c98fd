"""ExecuTorch on a CPU: what it takes and makes; `engines.executorch_engine` does the work."""

from __future__ import annotations

from typing import ClassVar

from exporters.confined_runtime import ConfinedExporter
from exporters.engines.executorch_engine import FILE
from exporters.engines.tasks import SHAPE


class ExecuTorchExporter(ConfinedExporter):
    """ExecuTorch with XNNPACK on a CPU (see `exporters.protocol.Exporter`)."""

    name = "executorch"
    needs = "edgeclean[executorch]"
    packages: ClassVar = {"executorch": ((1, 5), (1, 6))}
    precisions = ("fp32",)
    files = (FILE, SHAPE)
    engine = "exporters.engines.executorch_engine:ExecuTorchEngine"
    computes: ClassVar = {"fp32": "weights in FP32, computed in FP32 by XNNPACK"}
