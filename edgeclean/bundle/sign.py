"""The signature of a bundle that was written before: checked whole, then signed in its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeclean.bundle import manifest as texts
from edgeclean.bundle.bundle import put_in_place
from edgeclean.bundle.signing import Signer, check_signer
from edgeclean.bundle.verify import check_unchanged, open_bundle
from edgeclean.files.atomic import hold_folder
from edgeclean.notes import note_output


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRecord:
    """The signature that was written.

    Attributes:
        signature: its file in the bundle.
        manifest_sha256: of the bundle's ``manifest.json``.
        files: the names of the files that are signed, sorted.
    """

    signature: Path
    manifest_sha256: str
    files: tuple[str, ...]


def sign_bundle(bundle: Path, signer: Signer) -> SignRecord:
    """Verify a bundle and sign every file of it, offline; a signature that it has is replaced.

    Args:
        bundle: the bundle's folder.
        signer: the private key, and its certificate where there is one.

    Returns:
        What was signed. The bundle is either signed whole or as it was.

    Raises:
        UsageError: the key or certificate cannot be used, or the folder cannot be written.
        OutputInUseError: another run holds the folder.
        InputRejectedError: the bundle does not verify.
        ToolchainError: the library that signs is not installed.
    """
    check_signer(signer, bundle)
    check_unchanged(bundle)  # before a lock is put beside what may be no bundle
    note_output(bundle)
    with hold_folder(bundle, lambda folder, _named: check_unchanged(folder)) as held:
        opened = open_bundle(held.path)
        files = {n: content for n, content in opened.files.items() if n != texts.SIGNATURE}
        put_in_place(held, files, signer)
        return SignRecord(
            signature=held.path / texts.SIGNATURE,
            manifest_sha256=opened.record.manifest_sha256,
            files=tuple(sorted(files)),
        )
