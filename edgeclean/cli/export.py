"""`edgeclean export`: a checkpoint as ONNX, as it is."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.dependencies import checkpoint_files, code_file, external_files
from edgeclean.files.atomic import HeldFolder, folder_in_place, hold_folder
from edgeclean.files.writing import check_place, in_place, is_our_onnx, keep_apart
from edgeclean.notes import note_output

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
    target_file: opt.TargetFile = None,
    precision: opt.PrecisionName = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            help="Also for openvino, ncnn, mnn, litert, litert-micro or executorch, several with "
            "commas, each into a folder beside the file: OUTPUT-NAME.",
            rich_help_panel=opt.RUN,
        ),
    ] = None,
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
    read = [*checkpoint_files(checkpoint), model, config, target_file]
    read.append(code_file(spec.architecture, code_folder))
    keep_apart(read, files=[output])
    check_place(output, is_our_onnx)
    options: dict[str, Any] = {"seed": seed, "target": target, "jetpack": jetpack}
    options |= opt.load_options(state_dict) | opt.runtime_options(runtime)
    options |= {"export": {"opset": opset}, "precision": {"format": precision}}
    settings, _ = opt.pipeline_settings(config, options, target_file, note=reporter.note)
    from edgeclean.pipeline import export_checkpoint

    folders = {name: beside(output, name) for name in settings.runtime.names}
    for folder in folders.values():
        keep_apart([*read, output], folder=folder)
    with ExitStack() as held, reporter.progress() as progress:
        places = {name: held.enter_context(_held(folder)) for name, folder in folders.items()}
        exported = export_checkpoint(
            checkpoint, spec, settings, code_folder=code_folder, progress=progress
        )
        keep_apart(external_files(checkpoint, exported.network), files=[output])
        with in_place({output: exported.model}, ours=is_our_onnx):
            _write_forms(exported, places)
    opt.note_loading(checkpoint, exported.network, reporter.note)
    _answer(reporter, output, exported)


def beside(output: Path, runtime: str) -> Path:
    """The folder of a runtime's files, beside the ONNX file: net.onnx has net-ncnn."""
    return output.with_name(f"{output.stem}-{runtime}")


def _held(folder: Path) -> AbstractContextManager[HeldFolder]:
    from edgeclean.bundle.runtime_folder import refuse_other_folder

    note_output(folder)
    return hold_folder(folder, refuse_other_folder)


def _write_forms(exported: ExportedCheckpoint, places: dict[str, HeldFolder]) -> None:
    """Each runtime's files into its folder; all folders appear, whole, or none does."""
    from edgeclean.bundle.runtime_folder import runtime_folder_files
    from edgeclean.outcome import bundled

    with ExitStack() as in_their_places:
        for form in exported.forms:
            one = bundled(form, exported.parity.tolerance)
            files = runtime_folder_files(one, exported.network.source_sha256)
            in_their_places.enter_context(folder_in_place(places[form.name], files))


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
    for form in exported.forms:
        folder, size = beside(output, form.name), sum(map(len, form.files.values()))
        words = f"{folder}, {byte_size(size)}, differs by {form.parity.max_relative_difference:.1e}"
        table.add_row(*cells(f"{form.name} {form.version}", words))
    document = {
        "file": str(output),
        "bytes": len(exported.model),
        "opset": opset,
        "source_sha256": exported.network.source_sha256,
        "parity": asdict(parity),
        "precision": lowered.summary(),
        "runtimes": {
            form.name: {
                "folder": str(beside(output, form.name)),
                "version": form.version,
                "precision": form.precision,
                "parity": asdict(form.parity),
                "agreement": None if form.agreement is None else asdict(form.agreement),
            }
            for form in exported.forms
        },
    }
    reporter.answer(document, table)
