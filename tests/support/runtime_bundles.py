"""Bundles of a tiny network for one runtime, with the kit that measures them on a board."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtime_installed import installed_runtime
from tiny_networks import Block, tiny_contents, tiny_network

from edgeclean.bundle.bundle import write_bundle
from edgeclean.bundle.runtime_kit import runtime_kit_files
from edgeclean.bundle.runtimes import BundledRuntime
from edgeclean.networks.pixels import normalize
from exporters.onnx_exporter import export_onnx


def original_onnx() -> bytes:
    """A wider network of the tiny one's input and classes."""
    return export_onnx(tiny_network(Block(16), Block(16), channels=16))


def bundled(name: str) -> BundledRuntime:
    """The tiny bundle's network in the form of an installed runtime."""
    exporter, contents = installed_runtime(name), tiny_contents()
    files = dict(exporter.converted(contents.model).files)
    images = normalize(contents.golden_pixels, contents.network.spec).numpy()
    return BundledRuntime(
        name=name,
        version=exporter.version() or "",
        made_by=exporter.made_by(),
        precision="fp32",
        computes=exporter.computes["fp32"],
        reproducible=True,
        files=files,
        golden=exporter.load(files).run(images),
        tolerance=1e-4,
    )


def runtime_bundle(folder: Path, name: str) -> Path:
    """A bundle whose target's runtime is ``name``; skips the test where that is not installed."""
    contents = tiny_contents()
    target = {"name": "a-board", "runtime": name}
    if name == "onnxruntime":
        kit = runtime_kit_files(
            name, {"model.onnx": original_onnx()}, precision="fp32", batch=1, tolerance=1e-4
        )
        return write_bundle(folder, replace(contents, target=target, reproducible_files=kit)).path
    one = bundled(name)
    original = installed_runtime(name).converted(original_onnx()).files
    kit = runtime_kit_files(name, original, precision="fp32", batch=1, tolerance=1e-4)
    whole = replace(contents, target=target, reproducible_files=kit, runtimes=(one,))
    return write_bundle(folder, whole).path
