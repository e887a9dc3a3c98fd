"""`edgeclean sign`: say whose bundle it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclean.cli.bundle import Bundle
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.options import AsJson, Quiet


def sign(
    bundle: Bundle,
    key: Annotated[
        Path,
        typer.Option(
            "--key",
            "--private-key",
            help="A private key of an elliptic curve, as PEM without a password.",
        ),
    ],
    certificate: Annotated[
        Path | None, typer.Option(help="The certificate of that key, as PEM.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Verify a bundle and sign every file of it, offline; a signature that it has is replaced."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from edgeclean.bundle import manifest as texts
    from edgeclean.bundle.bundle import put_in_place
    from edgeclean.bundle.signing import Signer, check_signer
    from edgeclean.bundle.verify import check_unchanged, read_folder, verify_bundle
    from edgeclean.files.atomic import hold_folder

    signer = Signer(private_key=key, certificate=certificate)
    check_signer(signer)
    check_unchanged(bundle)  # before a lock is put beside what may be no bundle
    unchanged = hold_folder(bundle, lambda folder, _named: check_unchanged(folder))
    with reporter.progress() as progress, unchanged as held:
        progress("Verifying", 0, 1)
        record = verify_bundle(held.path)
        progress("Verifying", 1, 1)
        files, _ = read_folder(held.path)
        files.pop(texts.SIGNATURE, None)
        put_in_place(held, files, signer)
    signature = held.path / texts.SIGNATURE
    table = plain_table("", "")
    table.add_row(*cells("files signed", len(files)))
    table.add_row(*cells("manifest", record.manifest_sha256))
    table.add_row(*cells("signature", signature))
    reporter.answer(
        {
            "signature": str(signature),
            "manifest_sha256": record.manifest_sha256,
            "files": sorted(files),
        },
        table,
    )
