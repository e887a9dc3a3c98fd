"""The ``kit/`` folder of a bundle for a TensorRT device: what builds and measures it there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from edgeclean.bundle import manifest as texts

FOLDER = "kit"
ORIGINAL = "kit/original.onnx"
PROGRAM = "kit/edgeclean_device.py"
SCRIPT = "kit/run.sh"
SETTINGS = "kit/kit.json"
PARTS = ("storage.py", "trtexec_lines.py", "device_state.py", "edgeclean_device.py")
_LEFT_OUT = re.compile(r"^# <joined>\n.*?^# </joined>\n", re.DOTALL | re.MULTILINE)


def kit_files(
    original: bytes, target: Mapping[str, Any], *, precision: str, batch: int | None
) -> dict[str, bytes]:
    """Every file of the kit, by its name in the bundle.

    Args:
        original: the network as it came, as ONNX in float32, to measure against.
        target: the profile, as JSON.
        precision: of the bundle's ``model.onnx``.
        batch: images a run; None where the file leaves it open.

    Returns:
        One Python file for stock Python 3.6 and later, a shell script, settings, and the original.
    """
    settings = {
        "batch": batch or 1,
        "compute_capability": target.get("compute_capability"),
        "networks": {
            "original": {"file": ORIGINAL, "precision": "fp32"},
            "compressed": {"file": texts.MODEL, "precision": precision},
        },
        "target": target.get("name"),
        "tensorrt": target.get("tensorrt"),
    }
    return {
        PROGRAM: program().encode(),
        SCRIPT: _source("run.sh").encode(),
        SETTINGS: texts.canonical_json(settings),
        ORIGINAL: original,
    }


def program() -> str:
    """The kit's parts as one file: a device gets one thing to read and to run."""
    parts = (_LEFT_OUT.sub("", _source(name)) for name in PARTS)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _source(name: str) -> str:
    return resources.files("edgeclean").joinpath(f"devices/kit/{name}").read_text("utf-8")
