"""Measure a bundle's files of another runtime against the original, which is converted for it.

Neither is trusted: the bundle was verified, the original is tried first as every stranger's
network is (`exporters.trial`), and both are converted and run in confined processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.text import shown
from edgeclean.measure.latency import LatencyReport, LatencySettings
from edgeclean.measure.runtime_latency import measure_runtime_pair
from exporters.confined_runtime import HeldSettings
from exporters.protocol import confined_exporter
from exporters.trial import try_network


def measure_bundled(
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
    original: bytes,
    name: str,
    settings: LatencySettings,
) -> LatencyReport:
    """Measure original and compressed network in turns in a runtime that the bundle is made for.

    Args:
        manifest: the manifest of a bundle that was verified.
        files: every file of that bundle.
        original: the original's ONNX file, in float32.
        name: name of the runtime.
        settings: the length and the conditions.

    Raises:
        UsageError: the bundle has no files of this runtime, or the two differ in input shape.
        ToolchainError: the runtime is not installed, or crashed.
        InputRejectedError: the original is refused, or the runtime does not take it.
    """
    made = manifest.get("runtimes", {})
    if name not in made:
        having = ", ".join(sorted(made)) or "none but onnxruntime"
        raise UsageError(
            f"the bundle has no files of the runtime {shown(name)}; it has those of {having}: make "
            "it with --runtime"
        )
    exporter = confined_exporter(name, HeldSettings(precision=made[name]["precision"]))
    exporter.require()
    try_network(original, "the original")
    try:
        source = confined_exporter(name).converted(original).files
    except InputRejectedError as error:
        raise InputRejectedError(f"the original: {error}") from None
    compressed = {file: files[f"{name}/{file}"] for file in exporter.files}
    return measure_runtime_pair(exporter, source, compressed, settings)
