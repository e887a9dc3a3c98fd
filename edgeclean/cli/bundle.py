"""The commands on a bundle that is there: `edgeclean verify`, `sign` and `embed`."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.errors import UsageError
from edgeclean.files.reading import is_regular
from edgeclean.files.text import shown
from edgeclean.files.writing import beginning, check_place, in_place, is_our_onnx, keep_apart

if TYPE_CHECKING:
    from edgeclean.bundle.certificates import SignerCertificate

_is_written = beginning(rb"/\* Written by `edgeclean embed`")


def verify(
    bundle: opt.BundleFolder,
    key: Annotated[
        Path | None,
        typer.Option(help="The public key, as PEM, that must have signed the bundle."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(help="Or the certificate, as PEM, of the authority behind the signer's."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="The moment to judge certificates at, such as 2026-11-28; else now."),
    ] = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Check that a bundle is whole, unchanged, signed by whom you say, and computes what it did."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    if at is not None and certificate is None:
        raise UsageError(
            "--at is the moment to judge a certificate at: give --certificate as well, or leave "
            "--at out"
        )
    from edgeclean.bundle.signing import Trusted
    from edgeclean.bundle.verify import verify_bundle

    named = key is not None or certificate is not None
    moment = None if at is None else _moment(at)
    trusted = Trusted(public_key=key, certificate=certificate, at=moment) if named else None
    with reporter.progress() as progress:
        progress("Verifying", 0, 1)
        record = verify_bundle(bundle, trusted)
        progress("Verifying", 1, 1)
    table = plain_table("", "")
    table.add_row(*cells("signature", record.signature))
    if record.signer is not None:
        for heading, words in _signer_rows(record.signer):
            table.add_row(*cells(heading, words))
    table.add_row(*cells("files whose hash holds", len(record.files)))
    table.add_row(*cells("manifest", record.manifest_sha256))
    table.add_row(*cells("made from", record.source_sha256))
    table.add_row(*cells("opset", record.opset))
    difference = f"{record.max_relative_difference:.1e} (<= {record.tolerance:.0e})"
    table.add_row(*cells(f"difference on {record.golden_images} golden images", difference))
    for one in record.runtimes:
        words = f"not run: {one.not_run}"
        if one.max_relative_difference is not None:
            words = f"{one.max_relative_difference:.1e} (<= {one.tolerance:.0e}), {one.version}"
        table.add_row(*cells(f"the same in {one.name} (made with {one.made_with})", words))
    reporter.answer(asdict(record), table)


def sign(
    bundle: opt.BundleFolder,
    key: Annotated[
        Path,
        typer.Option(
            "--key",
            "--private-key",
            help="A private key of an elliptic curve, as PEM without a password.",
        ),
    ],
    certificate: Annotated[
        Path | None,
        typer.Option(help="The certificate of that key, as PEM; those of its issuers may follow."),
    ] = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Verify a bundle and sign every file of it, offline; a signature that it has is replaced."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from edgeclean.bundle.sign import sign_bundle
    from edgeclean.bundle.signing import Signer

    with reporter.progress() as progress:
        progress("Verifying", 0, 1)
        record = sign_bundle(bundle, Signer(private_key=key, certificate=certificate))
        progress("Verifying", 1, 1)
    table = plain_table("", "")
    table.add_row(*cells("files signed", len(record.files)))
    table.add_row(*cells("manifest", record.manifest_sha256))
    table.add_row(*cells("signature", record.signature))
    reporter.answer(
        {
            "signature": str(record.signature),
            "manifest_sha256": record.manifest_sha256,
            "files": list(record.files),
        },
        table,
    )


def embed(  # noqa: PLR0913 - the options are the interface
    bundle: opt.BundleFolder,
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
    file: Annotated[
        str, typer.Option(help="Of the bundle, such as litert/model.tflite.")
    ] = "model.onnx",
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Verify a bundle, and write its network, or any file, as an aligned C array or .incbin."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from edgeclean.bundle.embed import EmbedSettings, embed_bundle
    from edgeclean.config import settings_from

    settings = settings_from(
        EmbedSettings,
        {"symbol": symbol, "align": align, "form": form, "file": file},
        where="options",
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
            "file": file,
            "bytes": embedded.model_bytes,
            "sha256": embedded.model_sha256,
        },
        table,
    )


def _signer_rows(signer: SignerCertificate) -> list[tuple[str, str]]:
    return [
        ("signed by", signer.subject),
        ("issued by", signer.issuer),
        ("trusted", signer.trusted),
        ("serial number", signer.serial),
        ("valid", f"{signer.valid_from} to {signer.valid_until}; judged at {signer.judged_at}"),
        ("certificate's SHA-256", signer.sha256),
    ]


def _moment(text: str) -> datetime:
    """Read ISO 8601; a date is its first second, and what names no time zone is UTC."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"--at is {shown(text)}; give a date or a time in ISO 8601, such as 2026-11-28 or "
            "2026-11-28T12:00:00Z"
        ) from None


def _is_ours(path: Path) -> bool:
    """Whether this command wrote a file; one of bytes is told by the header beside it."""
    if path.suffix == ".onnx":
        return is_our_onnx(path)
    if path.suffix in (".h", ".c", ".S"):
        return _is_written(path)
    header = path.with_suffix(".h")
    if not is_regular(header) or not _is_written(header):
        return False
    # Before it is read: somebody else's may be of any size.
    if not beginning(rf".*_SIZE {path.stat().st_size}\n".encode())(header):
        return False
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return beginning(rf'.*_SHA256 "{digest}"'.encode())(header)
