"""Write the ``kit/`` folder of a bundle for TensorRT, which builds and measures its engines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from edgeclean.bundle import manifest as texts

FOLDER = "kit"
ORIGINAL = "kit/original.onnx"
PROGRAM = "kit/edgeclean_device.py"
SCRIPT = "kit/run.sh"
SETTINGS = "kit/kit.json"
MODULES = (
    "storage.py",
    "checked_files.py",
    "trtexec_lines.py",
    "device_state.py",
    "edgeclean_device.py",
)
_LEFT_OUT = re.compile(r"^# <joined>\n.*?^# </joined>\n", re.DOTALL | re.MULTILINE)


def kit_files(
    original: bytes, target: Mapping[str, Any], *, precision: str, batch: int | None
) -> dict[str, bytes]:
    """Return every file of the kit, by its name in the bundle.

    Args:
        original: the network as it came, as ONNX in float32, to measure against.
        target: the target profile, as JSON.
        precision: precision of the bundle's ``model.onnx``.
        batch: images in one run; None where the file leaves it open.

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
        SCRIPT: source("run.sh").encode(),
        SETTINGS: texts.canonical_json(settings),
        ORIGINAL: original,
    }


def shipped_kit(manifest: Mapping[str, Any], original: bytes) -> dict[str, bytes]:
    """Return the kit that this installation writes for a bundle of this manifest.

    Programs and settings are ours and follow from the checked manifest: nothing of the bundle's own
    kit but the original network, which is data, is ever to run on a device.
    """
    return kit_files(
        original,
        manifest["target"],
        precision=texts.precision_of(manifest),
        batch=manifest["model"]["batch"],
    )


def first_difference(files: Mapping[str, bytes], shipped: Mapping[str, bytes]) -> str | None:
    """Return the first file of a bundle's kit that is not byte for byte the shipped one.

    A file that one of the two lacks differs. None where they are the same.
    """
    own = {name: content for name, content in files.items() if name.startswith(f"{FOLDER}/")}
    names = sorted({*own, *shipped})
    return next((name for name in names if own.get(name) != shipped.get(name)), None)


def program(modules: Sequence[str] = MODULES) -> str:
    """Return modules of ``devices/kit`` joined into one file, so that a device has one to run."""
    joined = (_LEFT_OUT.sub("", source(name)) for name in modules)
    return "\n\n".join(module.strip() for module in joined) + "\n"


def source(name: str) -> str:
    """Return a file of ``devices/kit`` as it is shipped with this installation."""
    return resources.files("edgeclean").joinpath(f"devices/kit/{name}").read_text("utf-8")
