"""`edgeclean compress`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclean.cli.console import Face, cells, plain_table
from edgeclean.cli.options import (
    RUN,
    Arch,
    AsJson,
    Checkpoint,
    Classes,
    Config,
    InputShape,
    JetPack,
    Mean,
    ModelFile,
    PrecisionName,
    Quiet,
    Seed,
    Std,
    TargetFile,
    TargetName,
    Threads,
    model_spec,
    pipeline_settings,
    use_threads,
)
from edgeclean.cli.scan import verdict_in_words
from edgeclean.errors import UsageError
from edgeclean.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.pipeline import WrittenOutcome

PURIFY = "Purification"
SIZE = "Size"


def compress(  # noqa: PLR0913 - the options are the interface
    checkpoint: Checkpoint,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The bundle's folder.", rich_help_panel=RUN)
    ],
    target: TargetName = None,
    target_file: TargetFile = None,
    jetpack: JetPack = None,
    ratio: Annotated[
        float | None,
        typer.Option(help="How many times fewer MACs (or parameters).", rich_help_panel=SIZE),
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help="What the ratio is of: macs or params.", rich_help_panel=SIZE)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A layer to leave whole; may be repeated.", rich_help_panel=SIZE),
    ] = None,
    rank_multiple: Annotated[
        int | None,
        typer.Option(
            help="Ranks are multiples of this; the target has its own.", rich_help_panel=SIZE
        ),
    ] = None,
    purify: Annotated[
        str | None,
        typer.Option(
            help="guided (by the scan), deck (only clamp singular values, at --tau), or none.",
            rich_help_panel=PURIFY,
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            help="Clamp singular values at this share of the largest.", rich_help_panel=PURIFY
        ),
    ] = None,
    fail_on_backdoor: Annotated[
        bool,
        typer.Option(
            "--fail-on-backdoor",
            help="Stop with exit code 4 if one is suspected.",
            rich_help_panel=PURIFY,
        ),
    ] = False,
    opset: Annotated[
        int | None, typer.Option(help="ONNX opset; the target has its own.", rich_help_panel=RUN)
    ] = None,
    precision: PrecisionName = None,
    model: ModelFile = None,
    arch: Arch = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
    config: Config = None,
    seed: Seed = None,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Scan, purify, compress and export a network, and write a checked bundle with its report."""
    face = Face(as_json=as_json, quiet=quiet)
    spec, code_folder = model_spec(
        model=model, arch=arch, input_shape=input_shape, classes=classes, mean=mean, std=std
    )
    settings, device = pipeline_settings(
        config,
        {
            "seed": seed,
            "target": target,
            "jetpack": jetpack,
            "fail_on_backdoor": fail_on_backdoor or None,
            "purify": {"mode": _purify_mode(purify, tau)},
            "decompose": {"keep": keep or None},
            "scale": {"tau": tau},
            "ranks": {"ratio": ratio, "measure": measure, "rank_multiple": rank_multiple},
            "export": {"opset": opset},
            "precision": {"format": precision},
            "latency": {"threads": threads},
        },
        target_file,
    )
    use_threads(threads)
    from edgeclean import pipeline

    with face.progress() as progress:
        outcome = pipeline.compress(
            checkpoint,
            spec,
            output,
            settings,
            target=device,
            code_folder=code_folder,
            progress=progress,
        )
    face.answer(_document(outcome), _summary(outcome), _checks(outcome), _files(outcome))
    face.say(f"report: {outcome.bundle.path / 'report.html'}")


def _purify_mode(purify: str | None, tau: float | None) -> str | None:
    """The deck's way is no unlearning, and the clamp that `edgeclean.factors.scale` does."""
    if purify == "deck" and tau is None:
        raise UsageError(
            "--purify deck clamps singular values and needs to know where: give --tau, a share of "
            "each layer's largest, such as 0.7"
        )
    return "none" if purify == "deck" else purify


def _document(written: WrittenOutcome) -> dict[str, Any]:
    """The answer in short; the whole report lies in the bundle."""
    report = written.report
    latency = written.outcome.latency
    return {
        "bundle": str(written.bundle.path),
        "manifest_sha256": written.bundle.manifest_sha256,
        "verdict": report["scan"]["verdict"],
        "suspects": report["scan"]["suspects"],
        "purified": report["purify"]["changed"],
        "size": report["size"],
        "parity": report["parity"],
        "precision": report["precision"],
        "latency": {
            "original_p50_ms": latency.original.p50_ms,
            "compressed_p50_ms": latency.compressed.p50_ms,
            "speedup": latency.speedup,
            "runtime": latency.runtime,
            "threads": latency.threads,
        },
        "seconds": {stage["stage"]: stage["seconds"] for stage in report["stages"]},
        "peak_memory_mib": report["peak_memory_mib"],
        "files": dict(written.bundle.file_bytes),
    }


def _summary(written: WrittenOutcome) -> Table:
    from edgeclean.reports.report import byte_size, si_number

    size, latency = written.report["size"], written.outcome.latency
    table = plain_table("", ">original", ">compressed", ">ratio")
    for title, key, shown in (
        ("parameters", "params", si_number),
        ("MACs", "macs", si_number),
        ("ONNX file", "onnx_bytes", byte_size),
    ):
        before, after = size[key]["original"], size[key]["compressed"]
        table.add_row(*cells(title, shown(before), shown(after), f"{before / after:.2f}x"))
    milliseconds = [f"{one.p50_ms:.3g} ms" for one in (latency.original, latency.compressed)]
    table.add_row(*cells("latency p50", *milliseconds, f"{latency.speedup:.2f}x"))
    return table


def _checks(written: WrittenOutcome) -> Table:
    parity, changed = written.outcome.parity, written.report["purify"]["changed"]
    difference = f"{parity.max_relative_difference:.1e}, allowed {parity.tolerance:.0e}"
    table = plain_table("", "")
    table.add_row(*cells("scan of the original", verdict_in_words(written.outcome.scan)))
    table.add_row(*cells("purification", "changed weights" if changed else "changed nothing"))
    table.add_row(*cells("parity of ONNX with PyTorch", difference))
    lowered = written.outcome.lowered
    agreement = lowered.agreement
    close = f"{agreement.top1_agreement:.1%} agree with fp32, {agreement.signal_to_noise_db:.0f} dB"
    kept = f", {len(lowered.kept)} nodes kept in fp32" if lowered.kept else ""
    if lowered.format != "fp32":
        table.add_row(*cells(f"precision {lowered.format}", close + kept))
    return table


def _files(written: WrittenOutcome) -> Table:
    from edgeclean.reports.report import byte_size

    table = plain_table("file", ">size", title=printable(str(written.bundle.path)))
    for name, length in written.bundle.file_bytes.items():
        table.add_row(*cells(name, byte_size(length)))
    return table
