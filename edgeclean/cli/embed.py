"""`edgeclean embed`: a bundle's network as source code for firmware."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclean.cli.bundle import Bundle
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.options import AsJson, Quiet
from edgeclean.files.writing import check_place, in_place, is_our_onnx, keep_apart, marked

_is_written = marked(b"Written by `edgeclean embed`")


def embed(  # noqa: PLR0913 - the options are the interface
    bundle: Bundle,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder that the files are written into.")
    ],
    symbol: Annotated[
        str, typer.Option(help="Name of the array, and of the files.")
    ] = "edgeclean_model",
    align: Annotated[int, typer.Option(help="Of its first byte; a power of two.")] = 64,
    form: Annotated[
        str, typer.Option(help="c: an array. incbin: an assembler file for GNU as or clang.")
    ] = "c",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Verify a bundle, and write its network as an aligned C array or assembler .incbin."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from edgeclean.bundle.embed import EmbedSettings, embed_bundle
    from edgeclean.config import settings_from

    settings = settings_from(
        EmbedSettings, {"symbol": symbol, "align": align, "form": form}, where="options"
    )
    places = [output / name for name in settings.file_names]
    keep_apart([bundle], files=places)
    for place in places:
        check_place(place, _is_ours)
    with reporter.progress() as progress:
        progress("Verifying", 0, 1)
        embedded = embed_bundle(bundle, settings)
        progress("Verifying", 1, 1)
    # The header is written first, so that it is the oldest to Make, and put in place last: half of
    # the files without it do not compile.
    files = {output / name: content for name, content in embedded.files.items()}
    with in_place(files, ours=_is_ours, last=output / f"{symbol}.h"):
        pass
    table = plain_table("file", ">bytes")
    for name, content in embedded.files.items():
        table.add_row(*cells(output / name, len(content)))
    reporter.answer(
        {
            "files": [str(output / name) for name in embedded.files],
            "symbol": symbol,
            "align": align,
            "form": form,
            "bytes": embedded.model_bytes,
            "sha256": embedded.model_sha256,
        },
        table,
    )


def _is_ours(path: Path) -> bool:
    return is_our_onnx(path) if path.suffix == ".onnx" else _is_written(path)
