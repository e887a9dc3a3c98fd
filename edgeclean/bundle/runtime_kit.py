"""Write the kit that measures a bundle in a runtime that is installed on a device.

A bundle for a processor's own runtime, such as ncnn on a Raspberry Pi, carries it in ``kit/``, with
the original network in that runtime's form. For another runtime `edgeclean.bundle.remote_runtime`
makes it when it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeclean.bundle import kit
from edgeclean.bundle import manifest as texts
from edgeclean.devices.kit.runtime_engines import PACKAGES

ORIGINAL = "kit/original/"  # before the names of its files
MODULES = (
    "storage.py",
    "checked_files.py",
    "device_state.py",
    "runtime_engines.py",
    "runtime_device.py",
)
ONNX_RUNTIME = "onnxruntime"  # which takes model.onnx as it is


def has_kit(runtime: str) -> bool:
    """Return whether there is a kit for a runtime: it is a wheel, and runs on Linux boards."""
    return runtime in PACKAGES


def compressed_names(runtime: str, files: Mapping[str, bytes]) -> list[str]:
    """Return the names in a bundle of the files of a runtime, sorted.

    Args:
        runtime: its name.
        files: the original's files in that runtime, by the runtime's own names.
    """
    return [
        texts.MODEL if runtime == ONNX_RUNTIME else f"{runtime}/{name}" for name in sorted(files)
    ]


def runtime_kit_files(
    runtime: str,
    original: Mapping[str, bytes],
    *,
    precision: str,
    batch: int | None,
    tolerance: float,
) -> dict[str, bytes]:
    """Return every file of the kit, by its name in the bundle.

    Args:
        runtime: name of the runtime.
        original: the network as it came, in the runtime's form in float32, by the runtime's names.
        precision: precision of the bundle's files of the runtime.
        batch: images in one run; None where the file leaves it open.
        tolerance: largest relative difference from the stored logits that is allowed.

    Returns:
        One Python file for Python 3.9 and later, a shell script, settings, and the original.
    """
    own = {f"{ORIGINAL}{name}": original[name] for name in sorted(original)}
    settings = {
        "batch": batch or 1,
        "golden": "logits" if runtime == ONNX_RUNTIME else runtime,
        "networks": {"original": [*own], "compressed": compressed_names(runtime, original)},
        "precision": precision,
        "runtime": runtime,
        "tolerance": tolerance,
    }
    return {
        kit.PROGRAM: kit.program(MODULES).encode(),
        kit.SCRIPT: kit.source("runtime_run.sh").encode(),
        kit.SETTINGS: texts.canonical_json(settings),
        **own,
    }


def shipped_runtime_kit(
    manifest: Mapping[str, Any], runtime: str, original: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Return the kit that this installation writes for a runtime of a bundle of this manifest.

    As `kit.shipped_kit`: programs and settings are ours, and follow from the checked manifest.
    """
    on_onnx = runtime == ONNX_RUNTIME
    entry = manifest["golden"] if on_onnx else manifest["runtimes"][runtime]
    return runtime_kit_files(
        runtime,
        original,
        precision=texts.precision_of(manifest) if on_onnx else entry["precision"],
        batch=manifest["model"]["batch"],
        tolerance=entry["tolerance"],
    )


def carried_original(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the original that a bundle carries in its runtime's form, by the runtime's names."""
    return {
        name.removeprefix(ORIGINAL): content
        for name, content in files.items()
        if name.startswith(ORIGINAL)
    }
