"""The command lines of TensorRT's trtexec, by version. Plain Python 3.6: it runs on the device.

Flags came and went: --workspace and --buildOnly ended with 8.6; 11.0 dropped every precision flag
and turned CUDA graphs and spinning on, and transfers off, by default. What is wanted is the same
everywhere: precision from the graph, transfers inside the latency, a CUDA graph, spinning.
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
    """The version in ``[TensorRT v8502]`` (8.5.2) or ``[TensorRT v101602]`` (10.16.2)."""
    found = re.search(r"\[TensorRT v(\d{4,6})\]", banner)
    if found is None:
        return None
    number = int(found.group(1))
    if number < 10000:
        return number // 1000, number // 100 % 10, number % 100
    return number // 10000, number // 100 % 100, number % 100


def flags_in(help_text: str) -> Set[str]:
    """Every flag that ``trtexec --help`` names."""
    return set(re.findall(r"--[A-Za-z][A-Za-z0-9]*", help_text))


def build_line(
    version: Version, known: Set[str], files: Dict[str, str], want: Dict[str, Any]
) -> List[str]:
    """The flags that build an engine without running it.

    Args:
        version: of TensorRT.
        known: the flags that this trtexec has; what is optional is left out where it is missing.
        files: paths of "onnx", "engine", "timing" and "layers".
        want: "precision" of the graph, "workspace_mib", and "dla_core" (None for the GPU).

    Raises:
        ValueError: the precision or the accelerator cannot be had from this version.
    """
    line = ["--onnx=" + files["onnx"], "--saveEngine=" + files["engine"]]
    line.append("--skipInference" if "--skipInference" in known else "--buildOnly")
    if "--memPoolSize" in known:
        line.append("--memPoolSize=workspace:%d" % want["workspace_mib"])
    else:
        line.append("--workspace=%d" % want["workspace_mib"])
    line += _optional(known, "--timingCacheFile=" + files["timing"])
    line += _optional(
        known, "--exportLayerInfo=" + files["layers"], "--profilingVerbosity=detailed"
    )
    line += _precision(version, want)
    if want["dla_core"] is not None:
        line += ["--useDLACore=%d" % want["dla_core"], "--allowGPUFallback"]
    return line


def measure_line(
    version: Version, known: Set[str], files: Dict[str, str], want: Dict[str, Any]
) -> List[str]:
    """The flags that time an engine.

    Args:
        version: of TensorRT.
        known: the flags that this trtexec has.
        files: paths of "engine" and "times".
        want: "seconds", "warmup_ms", and "dla_core".
    """
    line = ["--loadEngine=" + files["engine"], "--exportTimes=" + files["times"]]
    line += ["--warmUp=%d" % want["warmup_ms"], "--duration=%d" % want["seconds"]]
    line += ["--iterations=10"]
    if version[0] >= 11:  # graphs and spinning are on, transfers are off
        line += ["--includeDataTransfers"]
    else:
        line += _optional(known, "--useCudaGraph", "--useSpinWait")
    if want["dla_core"] is not None:
        line += ["--useDLACore=%d" % want["dla_core"]]
    return line


def precisions_of(layers: Any) -> Dict[str, int]:
    """How many layers write each type, from the JSON of the engine inspector."""
    count: Dict[str, int] = {}
    for layer in layers.get("Layers", []) if isinstance(layers, dict) else []:
        for output in (layer.get("Outputs") or [])[:1] if isinstance(layer, dict) else []:
            name = type_named(str(output.get("Format/Datatype", "")))
            count[name] = count.get(name, 0) + 1
    return count


def read_times(path: Path) -> List[float]:
    """The latencies that trtexec exported, in milliseconds; none where the file is not whole."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [float(row["latencyMs"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def layer_precisions(path: Path) -> Optional[Dict[str, int]]:
    """What the built engine's layers compute in; None where this trtexec does not tell."""
    try:
        return precisions_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def type_named(text: str) -> str:
    """Such as fp16, for "Row major linear FP16 format" and "Half"; "unknown" for other words."""
    for word in reversed(re.findall(r"[A-Za-z]+[0-9]*", text)):
        if word.lower() in NAMES:
            return NAMES[word.lower()]
    return "unknown"


def _precision(version: Version, want: Dict[str, Any]) -> List[str]:
    """11: the graph alone. 10: the graph, strongly typed. 8, and DLA before 11: a flag as well."""
    if version[0] >= 11:
        return []
    if version[0] == 10 and want["dla_core"] is None:
        return ["--stronglyTyped"]
    if want["precision"] == "bf16" and version[0] < 10:
        raise ValueError("bf16 needs TensorRT 10 or later; use fp16")
    if want["dla_core"] is not None and want["precision"] == "fp32":
        return ["--fp16"]  # the accelerator has no float32: see docs/guides/precision.md
    return PRECISION_FLAGS[want["precision"]]


def _optional(known: Set[str], *words: str) -> List[str]:
    return [word for word in words if word.split("=")[0] in known]
