"""Write command lines for TensorRT's trtexec. Plain Python 3.6: it runs on the device.

Flags depend on the version: --workspace and --buildOnly ended with 8.6; 11.0 dropped every
precision flag and turned CUDA graphs and spinning on, and transfers off, by default. The settings
are the same for all: precision from the graph, transfers inside the latency, a CUDA graph,
spinning.
"""

import json
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

Version = Tuple[int, int, int]
PRECISION_FLAGS = {"fp16": ["--fp16"], "int8": ["--int8"], "bf16": ["--bf16"], "fp32": []}
NAMES = {
    "half": "fp16",
    "fp16": "fp16",
    "float16": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "int8": "int8",
    "fp8": "fp8",
    "float": "fp32",
    "fp32": "fp32",
    "float32": "fp32",
    "int32": "int32",
    "bool": "bool",
}


def version_in(banner: str) -> Optional[Version]:
    """Read the version from ``[TensorRT v8502]`` (8.5.2) or ``[TensorRT v101602]`` (10.16.2)."""
    found = re.search(r"\[TensorRT v(\d{4,6})\]", banner)
    if found is None:
        return None
    number = int(found.group(1))
    if number < 10000:
        return number // 1000, number // 100 % 10, number % 100
    return number // 10000, number // 100 % 100, number % 100


def flags_in(help_text: str) -> Set[str]:
    """Return every flag that ``trtexec --help`` names."""
    return set(re.findall(r"--[A-Za-z][A-Za-z0-9]*", help_text))


def build_line(
    version: Version, known: Set[str], files: Dict[str, str], options: Dict[str, Any]
) -> List[str]:
    """Return the flags that build an engine without running it.

    Args:
        version: version of TensorRT.
        known: the flags that this trtexec has; optional flags that it lacks are left out.
        files: paths of "onnx", "engine", "timing" and "layers".
        options: "precision" of the graph, "workspace_mib", and "dla_core" (None for the GPU).

    Raises:
        ValueError: this version does not offer the precision or the accelerator.
    """
    line = ["--onnx=" + files["onnx"], "--saveEngine=" + files["engine"]]
    line.append("--skipInference" if "--skipInference" in known else "--buildOnly")
    if "--memPoolSize" in known:
        line.append("--memPoolSize=workspace:%d" % options["workspace_mib"])
    else:
        line.append("--workspace=%d" % options["workspace_mib"])
    line += _optional(known, "--timingCacheFile=" + files["timing"])
    line += _optional(
        known, "--exportLayerInfo=" + files["layers"], "--profilingVerbosity=detailed"
    )
    line += _precision(version, options)
    if options["dla_core"] is not None:
        line += ["--useDLACore=%d" % options["dla_core"], "--allowGPUFallback"]
    return line


def measure_line(
    version: Version, known: Set[str], files: Dict[str, str], options: Dict[str, Any]
) -> List[str]:
    """Return the flags that time an engine.

    Args:
        version: version of TensorRT.
        known: the flags that this trtexec has.
        files: paths of "engine" and "times".
        options: "seconds", "warmup_ms", and "dla_core".
    """
    line = ["--loadEngine=" + files["engine"], "--exportTimes=" + files["times"]]
    line += ["--warmUp=%d" % options["warmup_ms"], "--duration=%d" % options["seconds"]]
    line += ["--iterations=10"]
    if version[0] >= 11:  # graphs and spinning are on, transfers are off
        line += ["--includeDataTransfers"]
    else:
        line += _optional(known, "--useCudaGraph", "--useSpinWait")
    if options["dla_core"] is not None:
        line += ["--useDLACore=%d" % options["dla_core"]]
    return line


def precisions_of(layers: Any) -> Dict[str, int]:
    """Count the layers that write each type, from the JSON of the engine inspector."""
    count: Dict[str, int] = {}
    for layer in layers.get("Layers", []) if isinstance(layers, dict) else []:
        for output in (layer.get("Outputs") or [])[:1] if isinstance(layer, dict) else []:
            name = type_named(str(output.get("Format/Datatype", "")))
            count[name] = count.get(name, 0) + 1
    return count


def read_times(path: Path) -> List[float]:
    """Read the latencies that trtexec exported, in milliseconds; [] where a file is not whole."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [float(row["latencyMs"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def layer_precisions(path: Path) -> Optional[Dict[str, int]]:
    """Count a built engine's layers by type; None where this trtexec exports no layers."""
    try:
        return precisions_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def type_named(text: str) -> str:
    """Name the type in a text: fp16 in "Row major linear FP16 format" and "Half", or "unknown"."""
    for word in reversed(re.findall(r"[A-Za-z]+[0-9]*", text)):
        if word.lower() in NAMES:
            return NAMES[word.lower()]
    return "unknown"


def _precision(version: Version, options: Dict[str, Any]) -> List[str]:
    """Return the flags of a precision, by version.

    TensorRT 11 takes it from the graph; 10 from the graph, strongly typed; 8, and DLA before 11,
    need a flag as well.
    """
    if version[0] >= 11:
        return []
    if version[0] == 10 and options["dla_core"] is None:
        return ["--stronglyTyped"]
    if options["precision"] == "bf16" and version[0] < 10:
        raise ValueError("bf16 needs TensorRT 10 or later; use fp16")
    if options["dla_core"] is not None and options["precision"] == "fp32":
        return ["--fp16"]  # the accelerator has no float32: see docs/guides/precision.md
    return PRECISION_FLAGS[options["precision"]]


def _optional(known: Set[str], *words: str) -> List[str]:
    return [word for word in words if word.split("=")[0] in known]
