"""Write a bundle: one folder that says what it holds, how it was made and how to check it.

Everything but the measurements is byte-identical for one configuration on one machine: no time, no
path, no latency goes into the manifest or the files that it lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.materials import bill_of_materials
from edgeclean.bundle.runtimes import BundledRuntime, runtime_entries, runtime_files
from edgeclean.bundle.signing import Signer, sign_folder
from edgeclean.bundle.verify import check_unchanged
from edgeclean.environment import versions
from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.files.atomic import HeldFolder, hold_folder, replace_folder
from edgeclean.files.text import without_folder
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import JsonValue, Network
from exporters.onnx_check import graph_facts, open_onnx
from exporters.session import OnnxSession

MAX_GOLDEN_IMAGES = 16

# Takes the finished manifest and report (with the manifest's hash), and returns the page.
PageWriter = Callable[[Mapping[str, JsonValue], Mapping[str, JsonValue]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContents:
    """The contents of a bundle that is to be written.

    Attributes:
        model: the ONNX file.
        network: the network it was exported from, with the history of its stages.
        configuration: all settings of the run, as JSON; no paths.
        seed: seed of the run.
        target: the target profile it was made for, as JSON.
        golden_pixels: [n, c, h, w] in [0, 1], 1 to 16 synthetic images to check with later.
        golden_tolerance: largest relative difference from the stored logits that is allowed on
            another machine; see `exporters.parity`.
        measurements: the part of the report that differs from run to run: latency, parity, times.
        page: the HTML report, or a function that writes it from the finished manifest and report.
        reproducible_files: further files by name, listed in the manifest, such as trigger images.
        runtimes: the network in the form of other runtimes.
    """

    model: bytes
    network: Network
    configuration: Mapping[str, JsonValue]
    seed: int
    target: Mapping[str, JsonValue]
    golden_pixels: Float[Tensor, "n c h w"]
    golden_tolerance: float = 1e-4
    measurements: Mapping[str, JsonValue] = field(default_factory=dict)
    page: str | PageWriter | None = None
    reproducible_files: Mapping[str, bytes] = field(default_factory=dict)
    runtimes: tuple[BundledRuntime, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.golden_pixels) <= MAX_GOLDEN_IMAGES:
            raise UsageError(
                f"{len(self.golden_pixels)} golden images were given; 1 to {MAX_GOLDEN_IMAGES} "
                "are kept in a bundle"
            )
        taken = {texts.MODEL, texts.GOLDEN, texts.MATERIALS, *texts.UNREPRODUCIBLE}
        for name in self.reproducible_files:
            if not texts.is_file_name(name) or name in taken:
                raise UsageError(
                    f"{name!r} cannot name a further file of a bundle; use letters, digits, '.', "
                    f"'_' and '-', and none of {sorted(taken)}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was written.

    Attributes:
        path: the bundle's folder.
        manifest: the content of ``manifest.json``.
        manifest_sha256: the manifest's SHA-256, which the report names.
        file_bytes: the size of every file, by name.
    """

    path: Path
    manifest: Mapping[str, JsonValue]
    manifest_sha256: str
    file_bytes: Mapping[str, int]


def hold_output(output: Path) -> AbstractContextManager[HeldFolder]:
    """Hold an output folder for a whole run, and refuse one that could not be replaced at its end.

    Raises:
        OutputInUseError: another run holds the folder.
        UsageError: the folder exists, and is neither empty nor an unchanged bundle.
    """
    return hold_folder(output, refuse_foreign)


def refuse_foreign(folder: Path, named: Path) -> None:
    """Refuse to replace anything but a bundle that is as edgeclean wrote it.

    Raises:
        UsageError: the message names the first file that is missing, changed or somebody else's.
    """
    try:
        check_unchanged(folder)
    except (InputRejectedError, OSError) as error:
        raise UsageError(
            f"{named} is not an edgeclean bundle, or not as it was written, and would be lost: "
            f"{error}; move it away, or choose another output folder"
        ) from None


def write_bundle(
    output: Path | HeldFolder,
    contents: BundleContents,
    *,
    signer: Signer | None = None,
    alongside: AbstractContextManager[None] | None = None,
) -> Bundle:
    """Write a bundle, or replace one, as a whole or not at all.

    Args:
        output: a folder that does not exist, is empty, or is a bundle; or one held already.
        contents: the contents of the bundle.
        signer: key that signs the bundle before it is in place; None for no signature.
        alongside: a replacement that happens together with this one or not at all; see
            `replace_folder`.

    Returns:
        The bundle as it was written.

    Raises:
        OutputInUseError: another run holds the folder.
        UsageError: the folder is not a bundle, or cannot be written; or the key cannot sign.
        InputRejectedError: ``contents.model`` is not a valid ONNX file.
    """
    facts = _facts(contents)
    reproducible = {
        texts.MODEL: contents.model,
        texts.GOLDEN: _golden(contents),
        texts.MATERIALS: bill_of_materials(facts, texts.sha256(contents.model)),
        **runtime_files(contents.runtimes),
        **contents.reproducible_files,
    }
    manifest = {**facts, "files": texts.file_entries(reproducible)}
    texts.check_manifest(manifest)
    files = {**reproducible, texts.MANIFEST: texts.canonical_json(manifest)}
    manifest_sha256 = texts.sha256(files[texts.MANIFEST])
    report = {**contents.measurements, "manifest_sha256": manifest_sha256}
    files[texts.REPORT] = texts.canonical_json(report)
    if contents.page is not None:
        page = contents.page if isinstance(contents.page, str) else contents.page(manifest, report)
        files[texts.REPORT_PAGE] = page.encode()
    files[texts.CHECKSUMS] = texts.checksum_lines(files)
    holding = nullcontext(output) if isinstance(output, HeldFolder) else hold_output(output)
    with holding as held:
        file_bytes = put_in_place(held, files, signer, alongside)
    return Bundle(
        path=held.path,
        manifest=manifest,
        manifest_sha256=manifest_sha256,
        file_bytes=file_bytes,
    )


def put_in_place(
    held: HeldFolder,
    files: Mapping[str, bytes],
    signer: Signer | None,
    alongside: AbstractContextManager[None] | None = None,
) -> dict[str, int]:
    """Replace the held folder by these files and, where there is a signer, their signature.

    Returns:
        The size of every file, by name.

    Raises:
        UsageError: the place cannot be written, or the key cannot sign; the old folder is whole.
    """
    seal = (
        None if signer is None else (lambda folder: {texts.SIGNATURE: sign_folder(folder, signer)})
    )
    return replace_folder(held, files, seal=seal, alongside=alongside)


def _golden(contents: BundleContents) -> bytes:
    """Return normalised inputs and their logits by ONNX Runtime on one thread, as safetensors.

    Beside them those of every other runtime, by its name.
    """
    images = normalize(contents.golden_pixels.detach().cpu().float(), contents.network.spec)
    pixels: NDArray[np.float32] = np.ascontiguousarray(images.numpy())
    logits = OnnxSession(contents.model).predict(pixels)
    tensors = {"input": pixels, "logits": np.ascontiguousarray(logits)}
    tensors |= {one.name: np.ascontiguousarray(one.golden) for one in contents.runtimes}
    # No metadata: safetensors writes more than one entry in a random order.
    return bytes(save(tensors))


def _facts(contents: BundleContents) -> dict[str, Any]:
    """Return the manifest without its list of files."""
    spec, module = contents.network.spec, contents.network.module
    proto = open_onnx(contents.model)
    manifest = {
        "format": texts.FORMAT,
        "schema_version": texts.SCHEMA_VERSION,
        "source": {
            "architecture": without_folder(spec.architecture),
            "external_sha256": _external_files(contents.network),
            "sha256": contents.network.source_sha256,
        },
        "model": {
            **graph_facts(proto),
            "classes": spec.classes,
            "input_shape": list(spec.input_shape),
            "macs": count_macs(module, spec.input_shape),
            "mean": list(spec.mean),
            "params": count_params(module),
            "std": list(spec.std),
        },
        "golden": {
            "images": len(contents.golden_pixels),
            "tolerance": contents.golden_tolerance,
        },
        "configuration": dict(contents.configuration),
        "seed": contents.seed,
        "target": dict(contents.target),
        "versions": versions(),
        "history": [asdict(record) for record in contents.network.history],
    }
    if contents.runtimes:
        manifest["runtimes"] = runtime_entries(contents.runtimes)
    return texts.read_json(texts.canonical_json(manifest), texts.MANIFEST)  # tuples become lists


def _external_files(network: Network) -> dict[str, str]:
    """Return the SHA-256 of every file beside an ONNX input that held some of its weights."""
    loads = (record.notes for record in network.history if record.stage == "load")
    return dict(next(loads, {}).get("external_sha256", {}))
