"""The facts about machine and software that a reader of a measured number needs.

`versions` belongs into a manifest (it decides the bytes of the output); `describe_environment` only
into a report: it holds facts that change between two runs, such as the load. Neither ever holds a
host name, a user name or a path.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgeclean.version import __version__

LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxsim", "safetensors", "scipy", "tensorly", "torch")
OTHER_PACKAGES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-directml")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The machine that a measurement was made on.

    Attributes:
        processor: the name that the processor gives itself.
        logical_cores: the number that this process may run on.
        memory_gib: physical memory.
        system: kernel name and release.
        machine: instruction set, such as "x86_64".
        frequency_governor: the first core's, or "unknown" where the system has no answer.
        load_average: runnable tasks over the last minute when it was asked; other work on the
            machine makes every latency longer.
        versions: see `versions`.
        gpu: the CUDA GPU that scan, purification and fine-tuning ran on, or None.
    """

    processor: str
    logical_cores: int
    memory_gib: float
    system: str
    machine: str
    frequency_governor: str
    load_average: float
    versions: dict[str, str]
    gpu: str | None = None


def versions() -> dict[str, str]:
    """Return the versions of edgeclean, Python and the libraries that decide the output's bytes.

    A library that is not installed is left out.
    """
    found = {"edgeclean": __version__, "python": platform.python_version()}
    known = ((library, installed_version(library)) for library in LIBRARIES)
    return found | {library: version for library, version in known if version is not None}


def installed_version(library: str) -> str | None:
    """Return a library's version, whichever of its packages brought it; None if none did."""
    for package in (library, *OTHER_PACKAGES.get(library, ())):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def describe_environment(*, gpu: str | None = None) -> Environment:
    """Describe the machine as it is now; ``gpu`` is of `compute.gpu_name`, where one worked."""
    return Environment(
        processor=_processor_name(),
        logical_cores=usable_cores(),
        memory_gib=_memory_gib(),
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        frequency_governor=_read_line(
            Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"), "unknown"
        ),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0,
        versions=versions(),
        gpu=gpu,
    )


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in {"model name", "Model", "Hardware"} and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """Return the number of logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float:
    try:
        pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0.0
    return round(pages * page_bytes / 2**30, 1)


def _read_line(path: Path, otherwise: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or otherwise
    except OSError:
        return otherwise
