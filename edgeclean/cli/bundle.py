"""`edgeclean verify`: whether a bundle is whole."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgeclean.cli.console import Face, cells, plain_table
from edgeclean.cli.options import AsJson, Quiet

Bundle = Annotated[Path, typer.Argument(help="The folder of a bundle.")]


def verify(bundle: Bundle, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Check that a bundle is whole, unchanged, and still computes what it did."""
    face = Face(as_json=as_json, quiet=quiet)
    from edgeclean.bundles.verify import verify_bundle

    with face.progress() as progress:
        progress("Verifying", 0, 1)
        record = verify_bundle(bundle)
        progress("Verifying", 1, 1)
    table = plain_table("", "")
    table.add_row(*cells("files whose hash holds", len(record.files)))
    table.add_row(*cells("manifest", record.manifest_sha256))
    table.add_row(*cells("made from", record.source_sha256))
    table.add_row(*cells("opset", record.opset))
    difference = f"{record.max_relative_difference:.1e} (<= {record.tolerance:.0e})"
    table.add_row(*cells(f"difference on {record.golden_images} golden images", difference))
    face.answer(asdict(record), table)
