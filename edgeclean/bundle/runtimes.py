"""The files of other runtimes in a bundle: bound by its manifest, and run again by `verify`.

They lie in a folder with the runtime's name. What each gave for the golden images lies beside the
network's own logits, under that name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclean.child.inside import ChildLimits
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from edgeclean.files.text import shown
from exporters import EXPORTERS

# What a stranger's files may take where they are run again.
VERIFY_LIMITS = ChildLimits(memory_bytes=8 * 2**30, cpu_seconds=120, wall_seconds=1200)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledRuntime:
    """A network in the form of one runtime, as a bundle holds it.

    Attributes:
        name: name of the runtime.
        version: version of the runtime that ran it.
        made_by: version of each package that decided the bytes.
        precision: fp32, fp16 or int8.
        computes: how that is stored and computed, in words.
        reproducible: whether converting twice gives the same bytes.
        files: contents by name.
        golden: [n, classes] logits of the golden images.
        tolerance: the largest relative difference from these that is allowed elsewhere.
        arena_bytes: memory that the runtime takes for it; None where it asks the system for it.
    """

    name: str
    version: str
    made_by: Mapping[str, str]
    precision: str
    computes: str
    reproducible: bool
    files: Mapping[str, bytes]
    golden: NDArray[np.float32]
    tolerance: float
    arena_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeCheck:
    """What `verify` found of one runtime's files, whose hashes held.

    Attributes:
        name: name of the runtime.
        made_with: version of the runtime that the bundle was made with.
        version: version of the one that ran them here; None where they were not run.
        max_relative_difference: largest difference from the stored logits, divided by
            max(1, largest logit of the image); None where they were not run.
        tolerance: the largest that was allowed.
        not_run: the reason why they were not run; None where they were.
    """

    name: str
    made_with: str
    version: str | None
    max_relative_difference: float | None
    tolerance: float
    not_run: str | None


def runtime_files(runtimes: Sequence[BundledRuntime]) -> dict[str, bytes]:
    """Return the files by their names in the bundle."""
    return {
        f"{one.name}/{name}": content for one in runtimes for name, content in one.files.items()
    }


def runtime_entries(runtimes: Sequence[BundledRuntime]) -> dict[str, Any]:
    """Return the manifest's entries, by the runtime's name."""
    return {
        one.name: {
            "computes": one.computes,
            "files": sorted(f"{one.name}/{name}" for name in one.files),
            "made_by": dict(one.made_by),
            "precision": one.precision,
            "reproducible": one.reproducible,
            "tolerance": one.tolerance,
            "version": one.version,
            **({} if one.arena_bytes is None else {"arena_bytes": one.arena_bytes}),
        }
        for one in runtimes
    }


def is_of_runtime(name: str) -> bool:
    """Return whether a file of this name lies in a runtime's folder."""
    folder, _, file = name.partition("/")
    return bool(file) and folder in EXPORTERS


def files_of(name: str, entry: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return one runtime's files by the names that the runtime's exporter gives them.

    Raises:
        InputRejectedError: the manifest lists others than this runtime has.
    """
    exporter = _exporter(name, entry)
    expected = sorted(f"{name}/{file}" for file in exporter.files)
    if list(entry["files"]) != expected:
        raise InputRejectedError(
            f"the manifest lists {shown(', '.join(entry['files']))} for {name}; "
            f"{', '.join(expected)} are its files"
        )
    missing = [file for file in expected if file not in files]
    if missing:
        raise InputRejectedError(f"{missing[0]} is missing from the bundle")
    return {file: files[f"{name}/{file}"] for file in exporter.files}


def check_runtimes(
    manifest: Mapping[str, Any],
    files: Mapping[str, bytes],
    images: NDArray[np.float32],
    golden: Mapping[str, NDArray[np.float32]],
) -> tuple[RuntimeCheck, ...]:
    """Run every runtime's files on the golden images, where the runtime is installed.

    Args:
        manifest: the manifest, which fits its schema.
        files: every file of the bundle, whose hashes held.
        images: [n, c, h, w] golden images, normalised.
        golden: [n, classes] stored logits, by runtime.

    Returns:
        A check for each runtime of the manifest, in order of their names.

    Raises:
        InputRejectedError: the files are not the runtime's, cannot be run, crash it, or give
            other logits.
    """
    entries = sorted(manifest.get("runtimes", {}).items())
    own = {name: files_of(name, entry, files) for name, entry in entries}
    listed = {file for _, entry in entries for file in entry["files"]}
    loose = [name for name in sorted(files) if is_of_runtime(name) and name not in listed]
    if loose:
        raise InputRejectedError(f"{loose[0]} is of a runtime that the manifest does not list")
    return tuple(_checked(name, entry, own[name], images, golden[name]) for name, entry in entries)


def try_files(
    name: str,
    files: Mapping[str, bytes],
    entry: Mapping[str, Any],
    images: NDArray[np.float32],
) -> dict[str, bytes]:
    """Run an original that a bundle carries in a runtime's form, and return the runtime's files.

    Args:
        name: name of the runtime, which is installed.
        files: the original's files, by the runtime's names.
        entry: the manifest's entry of the runtime.
        images: [n, c, h, w] golden images, normalised.

    Raises:
        InputRejectedError: the files are not all there, or cannot be run.
    """
    exporter = _exporter(name, entry)
    try:
        exporter.load(files).run(images)
    except (InputRejectedError, ToolchainError) as error:  # a bundle is a stranger's
        raise InputRejectedError(
            f"the original in the bundle's kit cannot be run in {name}: {error}"
        ) from None
    return {file: files[file] for file in exporter.files}


def _exporter(name: str, entry: Mapping[str, Any]) -> Any:
    # By its name: it brings PyTorch, which a bundle for ONNX Runtime alone is verified without.
    runtime = importlib.import_module("exporters.confined_runtime")
    protocol = importlib.import_module("exporters.protocol")
    settings = runtime.HeldSettings(precision=entry["precision"])
    exporter = protocol.confined_exporter(name, settings)
    return type(exporter)(exporter.settings, VERIFY_LIMITS)


def _checked(
    name: str,
    entry: Mapping[str, Any],
    files: Mapping[str, bytes],
    images: NDArray[np.float32],
    expected: NDArray[np.float32],
) -> RuntimeCheck:
    exporter = _exporter(name, entry)
    found = RuntimeCheck(
        name=name,
        made_with=entry["version"],
        version=None,
        max_relative_difference=None,
        tolerance=entry["tolerance"],
        not_run=None,
    )
    try:
        exporter.require()
    except ToolchainError as error:
        return replace(found, not_run=str(error))
    except UsageError as error:
        raise InputRejectedError(f"the manifest names what {name} does not have: {error}") from None
    try:
        got = exporter.load(files).run(images)
    except (InputRejectedError, ToolchainError) as error:  # a bundle is a stranger's
        raise InputRejectedError(f"the files of {name} cannot be run: {error}") from None
    if got.shape != expected.shape:
        raise InputRejectedError(
            f"the files of {name} give logits {got.shape}; {expected.shape} are stored"
        )
    largest = np.maximum(1, np.abs(expected).max(axis=1, keepdims=True))
    difference = float((np.abs(got - expected) / largest).max())
    if not difference <= entry["tolerance"]:  # also true for NaN
        raise InputRejectedError(
            f"the files of {name} differ from their stored logits by {difference:.3g} of max(1, "
            f"largest logit); at most {entry['tolerance']:.3g} is allowed"
        )
    return replace(found, version=exporter.version(), max_relative_difference=difference)
