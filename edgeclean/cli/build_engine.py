"""`edgeclean build-engine`: a bundle's network as a TensorRT engine, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.files.writing import check_folder, keep_apart


def build_engine(  # noqa: PLR0913 - the options are the interface
    bundle: opt.BundleFolder,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="A folder that keeps engines for the next time."),
    ],
    workspace_mib: Annotated[
        int, typer.Option(min=1, help="The most scratch memory that a layer may take.")
    ] = 1024,
    dla_core: Annotated[
        int | None, typer.Option(min=0, help="Build for this DLA core, with the GPU behind it.")
    ] = None,
    no_gpu_fallback: Annotated[
        bool, typer.Option("--no-gpu-fallback", help="Refuse layers that the DLA cannot run.")
    ] = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Build a TensorRT engine for this machine's GPU, and report what its layers compute in."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from edgeclean.bundle import manifest as texts
    from edgeclean.bundle.verify import open_bundle
    from exporters.tensorrt_exporter import EngineSettings, cached_engine
    from exporters.trial import try_network

    keep_apart([bundle], files=[output / "an engine"])
    check_folder(output, "-o")
    with reporter.progress() as progress:
        progress("Verifying", 0, 1)
        opened = open_bundle(bundle)
        try_network(opened.model, texts.MODEL)  # what TensorRT reads, it reads in this process
        progress("Verifying", 1, 1)
        progress("Building the engine", 0, 1)
        settings = EngineSettings(
            precision=texts.precision_of(opened.manifest),
            workspace_mib=workspace_mib,
            dla_core=dla_core,
            gpu_fallback=not no_gpu_fallback,
        )
        plan, about = cached_engine(output, opened.model, texts.sha256(opened.model), settings)
        progress("Building the engine", 1, 1)
    table = plain_table("", "")
    table.add_row(*cells("engine", plan))
    table.add_row(*cells("TensorRT", about["tensorrt"]))
    table.add_row(*cells("compute capability", about["compute_capability"]))
    layers = ", ".join(f"{count} {kind}" for kind, count in about["layer_precisions"].items())
    table.add_row(*cells("layers, read back", layers))
    reporter.answer({"engine": str(plan), **about}, table)
