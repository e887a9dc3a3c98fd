"""`edgeclean doctor`: what is installed, and what each missing part would enable."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from importlib import metadata

from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.options import AsJson, Quiet
from edgeclean.errors import ToolchainError


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing that edgeclean can use.

    Attributes:
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
PROGRAMS = (
    ("trtexec", "building engines here with TensorRT's own program"),
    ("ssh", "reaching a device"),
)


def doctor(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Say what is installed here, and what each missing part would enable."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    parts = [
        *(
            Part(name=name, found=_version(name), needed=needed, enables=enables)
            for name, needed, enables in PACKAGES
        ),
        Part(
            name="CUDA device",
            found=_cuda_device(),
            needed=False,
            enables="--gpu: a faster scan, purification and fine-tuning",
        ),
        *(
            Part(name=name, found=shutil.which(name), needed=False, enables=enables)
            for name, enables in PROGRAMS
        ),
    ]
    table = plain_table("part", "found", "for")
    for part in parts:
        missing = "MISSING, needed" if part.needed else "missing"
        table.add_row(*cells(part.name, part.found or missing, part.enables))
    reporter.answer({"parts": [asdict(part) for part in parts]}, table)
    absent = [part.name for part in parts if part.needed and part.found is None]
    if absent:
        raise ToolchainError(
            f"{', '.join(absent)} is missing, and nothing works without it; "
            "pip install edgeclean brings it"
        )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cuda_device() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
