"""`edgeclean export`: a checkpoint as ONNX, as it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.dependencies import code_file, external_files
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
    TargetName,
    model_spec,
    pipeline_settings,
)
from edgeclean.files.writing import check_place, is_our_onnx, keep_apart, write_file

if TYPE_CHECKING:
    from exporters.parity import ParityRecord
    from exporters.precision.lower import LoweredModel

PARITY_IMAGES = 32


def export(  # noqa: PLR0913 - the options are the interface
    checkpoint: Checkpoint,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The ONNX file.", rich_help_panel=RUN)
    ],
    opset: Annotated[int | None, typer.Option(help="ONNX opset.", rich_help_panel=RUN)] = None,
    target: TargetName = None,
    jetpack: JetPack = None,
    precision: PrecisionName = None,
    model: ModelFile = None,
    arch: Arch = None,
    input_shape: InputShape = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
    config: Config = None,
    seed: Seed = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a checkpoint as a checked ONNX file, neither scanned nor purified nor compressed."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    spec, code_folder = model_spec(
        model=model, arch=arch, input_shape=input_shape, classes=classes, mean=mean, std=std
    )
    read = [checkpoint, model, config, code_file(spec.architecture, code_folder)]
    keep_apart(read, files=[output])
    check_place(output, is_our_onnx)
    options: dict[str, Any] = {"seed": seed, "target": target, "jetpack": jetpack}
    options |= {"export": {"opset": opset}, "precision": {"format": precision}}
    settings, _ = pipeline_settings(config, options, tell=reporter.note)
    import torch

    from edgeclean.images.synthesize import synthesize
    from edgeclean.load.checkpoint import load_checkpoint
    from exporters.onnx_exporter import export_onnx
    from exporters.parity import check_parity
    from exporters.precision.lower import lower_precision

    with reporter.progress() as progress:
        progress("Loading", 0, 1)
        network = load_checkpoint(checkpoint, spec, limits=settings.load, code_folder=code_folder)
        keep_apart(external_files(checkpoint, network), files=[output])
        progress("Loading", 1, 1)
        progress("Exporting", 0, 1)
        contents = export_onnx(network, settings.export)
        generator = torch.Generator().manual_seed(settings.seed)
        pixels = torch.rand(PARITY_IMAGES, *spec.input_shape, generator=generator)
        parity = check_parity(network, contents, pixels, settings.parity)
        progress("Exporting", 1, 1)
        if settings.precision.format != "fp32":
            drawn = synthesize(network, settings.synthesize, seed=settings.seed, progress=progress)
            pixels = drawn.pixels
        lowered = lower_precision(contents, spec, pixels, settings.precision, progress=progress)
        write_file(output, lowered.model, ours=is_our_onnx)
    _answer(reporter, output, network.source_sha256, parity, lowered)


def _answer(
    reporter: Reporter,
    output: Path,
    source_sha256: str,
    parity: ParityRecord,
    lowered: LoweredModel,
) -> None:
    """What was written, as a table or as JSON."""
    from edgeclean.report.report import byte_size
    from exporters.onnx_check import open_onnx, opset_of

    contents = lowered.model
    opset = opset_of(open_onnx(contents))
    table = plain_table("", ">")
    table.add_row(*cells("file", output))
    table.add_row(*cells("size", byte_size(len(contents))))
    table.add_row(*cells("opset", opset))
    table.add_row(*cells("parity on random images", f"{parity.max_relative_difference:.1e}"))
    agreement = f"{lowered.agreement.top1_agreement:.1%} agree with fp32"
    table.add_row(*cells(f"precision {lowered.format}", agreement))
    document = {
        "file": str(output),
        "bytes": len(contents),
        "opset": opset,
        "source_sha256": source_sha256,
        "parity": asdict(parity),
        "precision": lowered.summary(),
    }
    reporter.answer(document, table)
