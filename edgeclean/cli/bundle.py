"""`edgeclean verify`: whether a bundle is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.options import AsJson, Quiet

Bundle = Annotated[Path, typer.Argument(help="The folder of a bundle.")]


def verify(
    bundle: Bundle,
    key: Annotated[
        Path | None,
        typer.Option(help="The public key, as PEM, that must have signed the bundle."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(help="Or the certificate, as PEM, of the authority behind the signer's."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check that a bundle is whole, unchanged, signed by whom you say, and computes what it did."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from edgeclean.bundle.signing import Trusted
    from edgeclean.bundle.verify import verify_bundle

    named = key is not None or certificate is not None
    trusted = Trusted(public_key=key, certificate=certificate) if named else None
    with reporter.progress() as progress:
        progress("Verifying", 0, 1)
        record = verify_bundle(bundle, trusted)
        progress("Verifying", 1, 1)
    table = plain_table("", "")
    table.add_row(*cells("signature", record.signature))
    table.add_row(*cells("files whose hash holds", len(record.files)))
    table.add_row(*cells("manifest", record.manifest_sha256))
    table.add_row(*cells("made from", record.source_sha256))
    table.add_row(*cells("opset", record.opset))
    difference = f"{record.max_relative_difference:.1e} (<= {record.tolerance:.0e})"
    table.add_row(*cells(f"difference on {record.golden_images} golden images", difference))
    reporter.answer(asdict(record), table)
