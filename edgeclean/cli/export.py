"""`edgeclean export`: a checkpoint as ONNX, as it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.dependencies import checkpoint_files, code_file, external_files
from edgeclean.files.writing import check_place, is_our_onnx, keep_apart, write_file

if TYPE_CHECKING:
    from edgeclean.outcome import ExportedCheckpoint


def export(  # noqa: PLR0913 - the options are the interface
    checkpoint: opt.Checkpoint,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The ONNX file.", rich_help_panel=opt.RUN)
    ],
    opset: Annotated[int | None, typer.Option(help="ONNX opset.", rich_help_panel=opt.RUN)] = None,
    target: opt.TargetName = None,
    jetpack: opt.JetPack = None,
    precision: opt.PrecisionName = None,
    model: opt.ModelFile = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    classes: opt.Classes = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    state_dict: opt.StateDict = None,
    config: opt.Config = None,
    seed: opt.Seed = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Write a checkpoint as a checked ONNX file, neither scanned nor purified nor compressed."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    spec, code_folder = opt.model_spec(checkpoint, model, arch, input_shape, classes, mean, std)
    read = [*checkpoint_files(checkpoint), model, config, code_file(spec.architecture, code_folder)]
    keep_apart(read, files=[output])
    check_place(output, is_our_onnx)
    options: dict[str, Any] = {"seed": seed, "target": target, "jetpack": jetpack}
    options |= opt.load_options(state_dict)
    options |= {"export": {"opset": opset}, "precision": {"format": precision}}
    settings, _ = opt.pipeline_settings(config, options, note=reporter.note)
    from edgeclean.pipeline import export_checkpoint

    with reporter.progress() as progress:
        exported = export_checkpoint(
            checkpoint, spec, settings, code_folder=code_folder, progress=progress
        )
        keep_apart(external_files(checkpoint, exported.network), files=[output])
        write_file(output, exported.model, ours=is_our_onnx)
    opt.note_loading(checkpoint, exported.network, reporter.note)
    _answer(reporter, output, exported)


def _answer(reporter: Reporter, output: Path, exported: ExportedCheckpoint) -> None:
    """The file that was written, as a table or as JSON."""
    from edgeclean.report.report import byte_size
    from exporters.onnx_check import open_onnx, opset_of

    opset, parity, lowered = opset_of(open_onnx(exported.model)), exported.parity, exported.lowered
    table = plain_table("", ">")
    table.add_row(*cells("file", output))
    table.add_row(*cells("size", byte_size(len(exported.model))))
    table.add_row(*cells("opset", opset))
    table.add_row(*cells("parity on random images", f"{parity.max_relative_difference:.1e}"))
    agreement = f"{lowered.agreement.top1_agreement:.1%} agree with fp32"
    table.add_row(*cells(f"precision {lowered.format}", agreement))
    document = {
        "file": str(output),
        "bytes": len(exported.model),
        "opset": opset,
        "source_sha256": exported.network.source_sha256,
        "parity": asdict(parity),
        "precision": lowered.summary(),
    }
    reporter.answer(document, table)
