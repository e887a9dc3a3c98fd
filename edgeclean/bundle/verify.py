"""Verify that a bundle is whole and unchanged, and that its network gives its stored logits.

The bundle is untrusted here: no link is followed, sizes are bounded, and the network only runs
after its bytes are found to be the listed ones, in a process of its own (see ``golden``). The
hashes show any change, not who made it: whoever replaces a file can replace the hashes too; only a
signature binds them.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.golden import GoldenRun, run_isolated
from edgeclean.bundle.handover_check import check_handover_files
from edgeclean.bundle.kit import FOLDER, ORIGINAL
from edgeclean.bundle.materials import model_hash
from edgeclean.bundle.runtimes import RuntimeCheck, check_runtimes, is_of_runtime
from edgeclean.bundle.signing import Trusted, check_signature, is_signature_of
from edgeclean.environment import versions
from edgeclean.errors import InputRejectedError
from edgeclean.files.reading import is_folder, is_hollow, open_regular
from edgeclean.files.text import shown
from edgeclean.load.limits import LoadLimits, check_safetensors

if TYPE_CHECKING:
    from edgeclean.bundle.certificates import SignerCertificate

MAX_FILES = 1000
MAX_FILE_BYTES = 2**31  # a protobuf file cannot be larger
MAX_TEXT_BYTES = 64 * 2**20
MAX_LIST_BYTES = 2**20  # of SHA256SUMS: a line for each of so many files
MAX_BUNDLE_BYTES = 2**32
_LIMITS = LoadLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRecord:
    """The checks of a bundle, all of which held.

    Attributes:
        manifest_sha256: SHA-256 of ``manifest.json``, which the report names.
        source_sha256: SHA-256 of the checkpoint that the bundle was made from, by the manifest.
        files: every file whose hash was checked.
        opset: opset of ``model.onnx``.
        golden_images: number of stored images that were run.
        max_relative_difference: largest difference from the stored logits, divided by
            max(1, largest logit of the image).
        tolerance: the largest such difference that was allowed.
        runtime: the runtime that ran the network, with its version.
        signature: "holds"; "not checked" where there is one and nobody to trust was named;
            "none".
        signer: the certificate that signed, where an authority was named to trust.
        runtimes: the checks of other runtimes' files, which were run where that is installed.
    """

    manifest_sha256: str
    source_sha256: str
    files: tuple[str, ...]
    opset: int
    golden_images: int
    max_relative_difference: float
    tolerance: float
    runtime: str
    signature: str
    signer: SignerCertificate | None = None
    runtimes: tuple[RuntimeCheck, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBundle:
    """A bundle that held, with the very bytes that were checked.

    Whoever goes on to use a file takes it from here: the folder may have changed since, by its name
    alone it could be another one.

    Attributes:
        record: the checks, all of which held.
        manifest: the content of ``manifest.json``, which fits its schema.
        files: the bytes of every file, by name; those of a role have the manifest's hash of it.
    """

    record: VerifyRecord
    manifest: Mapping[str, Any]
    files: Mapping[str, bytes]

    @property
    def model(self) -> bytes:
        """The bytes of the network, ``model.onnx``."""
        return self.files[texts.MODEL]


def verify_bundle(path: Path, trusted: Trusted | None = None) -> VerifyRecord:
    """Check a bundle: files, hashes, schema, ONNX, and the logits on its golden images.

    Args:
        path: the bundle's folder.
        trusted: the key or the authority whose signature it must have; None to check none.

    Returns:
        The record of the checks, all of which held.

    Raises:
        InputRejectedError: the first check that did not hold; the message names the file.
        UsageError: the key or certificate to trust cannot be used.
        ToolchainError: the library that checks signatures is not installed.
    """
    return open_bundle(path, trusted).record


def open_bundle(path: Path, trusted: Trusted | None = None) -> VerifiedBundle:
    """Check a bundle as `verify_bundle` does, and return what was checked, to be used.

    Every file is read once. See `verify_bundle` for the arguments and the errors raised.
    """
    files, folders = read_folder(path)
    _check_hashes(files)
    signer = check_signature(path, files, trusted) if trusted is not None else None
    manifest = _check_lists(files, folders)
    manifest_sha256 = texts.sha256(files[texts.MANIFEST])
    report = texts.read_json(files[texts.REPORT], texts.REPORT)
    if report.get("manifest_sha256") != manifest_sha256:
        raise InputRejectedError(f"{texts.REPORT} names another manifest than the one beside it")
    bill = texts.read_json(files[texts.MATERIALS], texts.MATERIALS)
    if model_hash(bill) != texts.sha256(files[texts.MODEL]):
        raise InputRejectedError(f"{texts.MATERIALS} is of another network than {texts.MODEL}")
    check_handover_files(manifest, files)
    difference, runtimes = _check_golden(files, manifest)
    record = VerifyRecord(
        manifest_sha256=manifest_sha256,
        source_sha256=manifest["source"]["sha256"],
        files=tuple(sorted(files)),
        opset=manifest["model"]["opset"],
        golden_images=manifest["golden"]["images"],
        max_relative_difference=difference,
        tolerance=manifest["golden"]["tolerance"],
        runtime=f"onnxruntime {versions()['onnxruntime']}, CPU",
        signature="holds"
        if trusted is not None
        else "not checked"
        if texts.SIGNATURE in files
        else "none",
        signer=signer,
        runtimes=runtimes,
    )
    return VerifiedBundle(record=record, manifest=manifest, files=files)


def check_unchanged(path: Path) -> None:
    """Check that a folder holds the files that edgeclean wrote, all of them and no others.

    Nothing is run and no key is needed; a signature must be of these files, whoever made it.

    Raises:
        InputRejectedError: a file is missing, changed or somebody else's; the first one is named.
    """
    files, folders = read_folder(path)
    _check_hashes(files)
    _check_lists(files, folders)
    if texts.SIGNATURE in files and not is_signature_of(files):
        raise InputRejectedError(f"{texts.SIGNATURE} is not a signature of this bundle")


def read_folder(path: Path) -> tuple[dict[str, bytes], list[Path]]:
    """Read every file under a folder, by its relative POSIX path, and list the folders in it.

    Raises:
        InputRejectedError: the path is no folder, or holds what cannot be part of a bundle.
    """
    if not is_folder(path, follow=False):
        # A Path's own is_symlink raises where a folder above may not be read.
        if os.path.islink(path):  # noqa: PTH114
            what = "is a symbolic link"
        else:
            what = "is not a folder" if os.path.lexists(path) else "does not exist"
        raise InputRejectedError(f"{path} {what}; name the folder of a bundle itself")
    files: dict[str, bytes] = {}
    total = 0
    folders = [path]
    for folder in folders:  # grows while it is walked
        for entry, is_dir in _entries_of(folder, path):
            name = entry.relative_to(path).as_posix()
            if not texts.is_file_name(name):
                raise InputRejectedError(f"the bundle holds {name!r}, which cannot be part of it")
            if is_dir:
                folders.append(entry)
                continue
            files[name] = _read_file(entry, name)
            total += len(files[name])
            if len(files) > MAX_FILES or total > MAX_BUNDLE_BYTES:
                raise _too_large()
    return files, [folder.relative_to(path) for folder in folders[1:]]


def _entries_of(folder: Path, bundle: Path) -> list[tuple[Path, bool]]:
    """Return what lies in a folder of a bundle, each with whether it is a folder itself."""
    try:
        with os.scandir(folder) as found:
            # One more than may be there: nobody waits for the names of a million.
            entries = [
                (Path(entry.path), entry.is_dir(follow_symlinks=False))
                for entry in itertools.islice(found, MAX_FILES + 1)
            ]
    except OSError as error:
        name = folder if folder == bundle else folder.relative_to(bundle).as_posix()
        raise InputRejectedError(f"{name} cannot be read: {error.strerror}") from error
    if len(entries) > MAX_FILES:
        raise _too_large()
    return entries


def _too_large() -> InputRejectedError:
    return InputRejectedError(
        f"the bundle holds more than {MAX_FILES} files or {MAX_BUNDLE_BYTES // 2**30} GiB"
    )


def _read_file(path: Path, name: str) -> bytes:
    is_network = is_of_runtime(name) or name.startswith(f"{FOLDER}/original/")
    limit = {
        texts.MODEL: MAX_FILE_BYTES,
        ORIGINAL: MAX_FILE_BYTES,
        texts.CHECKSUMS: MAX_LIST_BYTES,
    }.get(name, MAX_FILE_BYTES if is_network else MAX_TEXT_BYTES)
    try:
        with open_regular(path, follow=False) as file:
            # A file that is one hole takes memory only when it is read.
            size = os.fstat(file.fileno()).st_size
            fits = size <= limit
            if is_hollow(file) and fits:
                raise InputRejectedError(f"{name} is nearly all hole; copy the bundle again")
            # Python takes the memory of all that is asked for: no more than there is, and one byte.
            content = file.read(size + 1) if fits else b""
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise InputRejectedError(f"{name} cannot be read: {reason}") from error
    if not fits or len(content) > limit:
        raise InputRejectedError(f"{name} is larger than {limit} bytes")
    return content


def _check_hashes(files: Mapping[str, bytes]) -> None:
    """Refuse a missing, unlisted or changed file."""
    if texts.CHECKSUMS not in files:
        raise InputRejectedError(f"{texts.CHECKSUMS} is missing; this is not an edgeclean bundle")
    hashes = texts.read_checksums(files[texts.CHECKSUMS])
    needed = {*texts.ALWAYS, *hashes}
    missing = sorted(needed - set(files))
    if missing:
        raise InputRejectedError(f"{missing[0]} is missing from the bundle")
    unexpected = sorted(set(files) - set(hashes) - {texts.CHECKSUMS, texts.SIGNATURE})
    if unexpected:
        raise InputRejectedError(f"{unexpected[0]} is not listed in {texts.CHECKSUMS}")
    for name, expected in sorted(hashes.items()):
        if texts.sha256(files[name]) != expected:
            raise InputRejectedError(
                f"{name} was changed: its SHA-256 is not the one in {texts.CHECKSUMS}"
            )


def _check_lists(files: Mapping[str, bytes], folders: list[Path]) -> dict[str, Any]:
    """Return the manifest, once it fits its schema and lists the files that are there."""
    _refuse_empty_folders(folders, files)
    manifest = texts.read_json(files[texts.MANIFEST], texts.MANIFEST)
    texts.check_manifest(manifest)
    _check_listed_files(manifest["files"], files)
    return manifest


def _refuse_empty_folders(folders: list[Path], files: Mapping[str, bytes]) -> None:
    needed = {parent for name in files for parent in Path(name).parents}
    for folder in folders:
        if folder not in needed:
            raise InputRejectedError(f"the bundle holds the empty folder {folder.as_posix()!r}")


def _check_listed_files(listed: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Refuse a manifest that does not list exactly the reproducible files with size and hash."""
    different = sorted(set(listed) ^ (set(files) - texts.UNREPRODUCIBLE))
    if different:
        where = "missing" if different[0] in listed else "not listed in the manifest"
        raise InputRejectedError(f"{different[0]} is {where}")
    found = texts.file_entries({name: files[name] for name in listed})
    for name, entry in sorted(listed.items()):
        if entry != found[name]:
            raise InputRejectedError(f"{name} is not the file that the manifest describes")


def _check_golden(
    files: Mapping[str, bytes], manifest: Mapping[str, Any]
) -> tuple[float, tuple[RuntimeCheck, ...]]:
    """Run the golden images; return the largest relative difference from the stored logits.

    With it the same of every other runtime's files.
    """
    try:
        check_safetensors(files[texts.GOLDEN], _LIMITS)
        golden = load(files[texts.GOLDEN])
    # The parser is Rust: besides its own error it raises what its Python glue does.
    except (InputRejectedError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputRejectedError(f"{texts.GOLDEN} cannot be read: {error}") from error
    model = manifest["model"]
    images = _float32(golden, "input", (manifest["golden"]["images"], *model["input_shape"]))
    expected = _float32(golden, "logits", (len(images), model["classes"]))
    ran = run_isolated(files[texts.MODEL], images)
    _check_model(ran, manifest)
    if ran.logits.shape != expected.shape:
        raise InputRejectedError(
            f"{texts.MODEL} gives logits {ran.logits.shape}; {texts.GOLDEN} holds {expected.shape}"
        )
    largest_logit = np.abs(expected).max(axis=1, keepdims=True)
    difference = float((np.abs(ran.logits - expected) / np.maximum(1, largest_logit)).max())
    if not difference <= manifest["golden"]["tolerance"]:  # also true for NaN
        raise InputRejectedError(
            f"{texts.MODEL} differs from its stored logits by {difference:.3g} of max(1, largest "
            f"logit); at most {manifest['golden']['tolerance']:.3g} is allowed"
        )
    stored = {name: _float32(golden, name, expected.shape) for name in manifest.get("runtimes", {})}
    return difference, check_runtimes(manifest, files, images, stored)


def _check_model(ran: GoldenRun, manifest: Mapping[str, Any]) -> None:
    for name, found in ran.graph.items():
        said = manifest["model"].get(name)
        if found != said:
            raise InputRejectedError(
                f"{texts.MODEL} has {name} {shown(found)}; the manifest says {shown(said)}"
            )
    if ran.source_sha256 != manifest["source"]["sha256"]:
        raise InputRejectedError(
            f"{texts.MODEL} was made from another checkpoint than the manifest says"
        )


def _float32(
    golden: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    tensor = golden.get(name)
    if tensor is None or tensor.dtype != np.float32 or tensor.shape != shape:
        found = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
        raise InputRejectedError(
            f"{texts.GOLDEN} holds {found} as {name!r}; float32 {shape} is said"
        )
    return tensor
