"""`edgeclean verify` and `edgeclean bench`: what one can do with a bundle."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgeclean.cli.console import Face, cells, plain_table
from edgeclean.cli.options import AsJson, Quiet
from edgeclean.errors import BudgetError

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
    face = Face(as_json=as_json, quiet=quiet)
    from edgeclean.bundles.signing import Trusted
    from edgeclean.bundles.verify import verify_bundle

    named = key is not None or certificate is not None
    trusted = Trusted(public_key=key, certificate=certificate) if named else None
    with face.progress() as progress:
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
    face.answer(asdict(record), table)


def bench(  # noqa: PLR0913 - the options are the interface
    bundle: Bundle,
    against: Annotated[
        Path,
        typer.Option(help="The original as ONNX (`edgeclean export CHECKPOINT -o original.onnx`)."),
    ],
    threads: Annotated[int, typer.Option(min=1, help="Of ONNX Runtime.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Measured runs of each network.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the random input.")] = 0,
    min_speedup: Annotated[
        float | None, typer.Option(help="Exit with code 6 if the median gains less.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a bundle's network and the original in turns, on this machine's CPU."""
    face = Face(as_json=as_json, quiet=quiet)
    from edgeclean.bundles.verify import verify_bundle
    from edgeclean.loading.input_guard import LoadLimits, read_input
    from edgeclean.loading.isolation import parse_isolated
    from edgeclean.runtime.latency import LatencySettings, measure_pair

    settings = LatencySettings(threads=threads, runs=runs, seed=seed)
    with face.progress() as progress:
        progress("Verifying", 0, 1)
        verify_bundle(bundle)
        limits = LoadLimits()
        model, original = (
            read_input(path, limits.file_bytes) for path in (bundle / "model.onnx", against)
        )
        parse_isolated("onnx", original, limits)  # it may be a stranger's as well
        progress("Verifying", 1, 1)
        progress("Measuring", 0, 1)
        report = measure_pair(original, model, settings)
        progress("Measuring", 1, 1)
    table = plain_table("ms", ">p50", ">p90", ">p99", ">least", ">spread")
    for name, sample in (("original", report.original), ("compressed", report.compressed)):
        times = (sample.p50_ms, sample.p90_ms, sample.p99_ms, sample.min_ms)
        spread = f"{sample.coefficient_of_variation:.1%}"
        table.add_row(*cells(name, *(f"{each:.3g}" for each in times), spread))
    interval = f"{report.speedup_low:.2f} to {report.speedup_high:.2f}"
    table.add_row(*cells("speed-up", f"{report.speedup:.2f}x", interval))
    face.answer(asdict(report), table)
    if not report.steady:
        face.say("the machine was not steady: read the spread before the ratio")
    if min_speedup is not None and report.speedup < min_speedup:
        raise BudgetError(
            f"the speed-up is {report.speedup:.2f}, and at least {min_speedup:g} was asked; on "
            f"{threads} threads of this machine's CPU this bundle does not give it"
        )
