"""The commands about edgeclean itself: `edgeclean integrations`, `targets` and `doctor`."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.streams import answer_stream
from edgeclean.environment import installed_version
from edgeclean.errors import ToolchainError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.devices.targets import Target


class BuildSystem(StrEnum):
    """A build system with a folder under ``edgeclean/integrations``."""

    cmake = "cmake"
    make = "make"
    yocto = "yocto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One thing that edgeclean can use.

    Attributes:
        name: of the package, device or program.
        found: its version or place; None where it is missing.
        needed: whether nothing works without it.
        enables: what it is for.
    """

    name: str
    found: str | None
    needed: bool
    enables: str


PACKAGES = (
    ("torch", True, "everything: networks are PyTorch modules"),
    ("safetensors", True, "reading .safetensors, golden images in a bundle"),
    ("scipy", True, "the choice of ranks"),
    ("tensorly", True, "the reference of the tensor algebra"),
    ("onnx", True, "reading and writing ONNX"),
    ("onnxsim", True, "simplified ONNX files"),
    ("onnxruntime", True, "parity and latency on this machine's CPU"),
    ("matplotlib", True, "the report's plots"),
    ("tensorrt", False, "building engines here: pip install 'edgeclean[tensorrt]'"),
    ("model-signing", False, "signing bundles: pip install 'edgeclean[sign]'"),
)
# The package whose version is shown, and the extra that brings it and its converter.
RUNTIMES = (
    ("openvino", "openvino", "Intel processors"),
    ("ncnn", "ncnn", "Arm processors: Raspberry Pi, phones"),
    ("pnnx", "ncnn", "converting for ncnn"),
    ("mnn", "mnn", "phones and other Arm processors"),
    ("ai-edge-litert", "litert", "phones, boards and microcontrollers"),
    ("litert-torch", "litert", "converting for LiteRT"),
    ("tflite-micro", "litert-micro", "microcontrollers"),
    ("executorch", "executorch", "phones, with PyTorch's own runtime"),
)
PROGRAMS = (
    ("trtexec", "building engines here with TensorRT's own program"),
    ("ssh", "reaching a device"),
)

OneSystem = Annotated[BuildSystem | None, typer.Argument(help="Print this folder alone.")]


def integrations(
    system: OneSystem = None, as_json: opt.AsJson = False, quiet: opt.Quiet = False
) -> None:
    """Print the folders with the CMake module, the Make include and the Yocto layer."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    folders = {
        one.value: str(resources.files("edgeclean.integrations").joinpath(one))
        for one in BuildSystem
    }
    if system is not None and not as_json:
        # Also when quiet: a build asks for nothing else.
        answer_stream().write(f"{folders[system]}\n")
        return
    table = plain_table("build system", "folder")
    for name, folder in folders.items():
        table.add_row(*cells(name, folder))
    reporter.answer(folders if system is None else {system.value: folders[system]}, table)


def parts(system: OneSystem = None, as_json: opt.AsJson = False, quiet: opt.Quiet = False) -> None:
    """Do what `edgeclean integrations` does: builds of earlier versions call it by this name."""
    Reporter(quiet=quiet).note("`edgeclean parts` is called `edgeclean integrations` now")
    integrations(system, as_json, quiet)


def targets(
    name: Annotated[str | None, typer.Argument(help="One target, with all its facts.")] = None,
    target_file: opt.TargetFile = None,
    jetpack: opt.JetPack = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """List the targets, or print every fact about one with its source."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from edgeclean.devices.targets import list_targets, load_target

    if name is not None or target_file is not None:
        one = load_target(name, jetpack=jetpack, target_file=target_file)
        reporter.answer(asdict(one), _facts(one))
        return
    if jetpack is not None:
        raise UsageError("--jetpack is of one Jetson: name it, as in `edgeclean targets agx-orin`")
    known = list_targets()
    table = plain_table("target", "what it is")
    for target in known:
        table.add_row(*cells(target.name, target.description))
    reporter.answer({"targets": [asdict(target) for target in known]}, table)


def _facts(target: Target) -> Table:
    table = plain_table("fact", "value", "source", title=target.description)
    for field, entry in asdict(target).items():
        if field not in ("name", "title", "sources") and entry not in (None, (), {}):
            table.add_row(*cells(field, _in_words(entry), target.sources.get(field, "")))
    return table


def _in_words(entry: object) -> str:
    if isinstance(entry, dict):
        return ", ".join(f"{key}: {value}" for key, value in entry.items())
    return ", ".join(map(str, entry)) if isinstance(entry, tuple | list) else str(entry)


def doctor(as_json: opt.AsJson = False, quiet: opt.Quiet = False) -> None:
    """Say what is installed here, and what each missing part would enable."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    components = [
        *(
            Component(name=name, found=installed_version(name), needed=needed, enables=enables)
            for name, needed, enables in PACKAGES
        ),
        *(
            Component(
                name=name,
                found=installed_version(name),
                needed=False,
                enables=f"--runtime {extra}, {use}: pip install 'edgeclean[{extra}]'",
            )
            for name, extra, use in RUNTIMES
        ),
        Component(
            name="CUDA device",
            found=_cuda_device(),
            needed=False,
            enables="--gpu: a faster scan, purification and fine-tuning",
        ),
        *(
            Component(name=name, found=shutil.which(name), needed=False, enables=enables)
            for name, enables in PROGRAMS
        ),
    ]
    table = plain_table("component", "found", "for")
    for one in components:
        missing = "MISSING, needed" if one.needed else "missing"
        table.add_row(*cells(one.name, one.found or missing, one.enables))
    reporter.answer({"parts": [asdict(one) for one in components]}, table)
    absent = [one.name for one in components if one.needed and one.found is None]
    if absent:
        raise ToolchainError(
            f"{', '.join(absent)} is missing, and nothing works without it; "
            "pip install edgeclean brings it"
        )


def _cuda_device() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
