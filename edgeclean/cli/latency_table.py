"""`edgeclean latency-table`: what every candidate of a network's layers takes on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.dependencies import checkpoint_files, code_file, external_files
from edgeclean.files.writing import beginning, check_place, keep_apart, write_file

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.compression.latency_table import LatencyTable

IS_TABLE = beginning(
    rb'\{\n "batch": \d+,\n "device": "(?:[^"\\\n]|\\.)*",\n "format": "edgeclean-latency-table-1"'
)


def latency_table(  # noqa: PLR0913 - the options are the interface
    checkpoint: opt.Checkpoint,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The table, as JSON.", rich_help_panel=opt.RUN)
    ],
    backend: Annotated[
        str,
        typer.Option(
            help="cpu: the runtime here; torch-cuda: PyTorch with CUDA graphs on this GPU.",
            rich_help_panel=opt.RUN,
        ),
    ] = "cpu",
    runtime: Annotated[
        str,
        typer.Option(
            help="onnxruntime, openvino, ncnn, mnn, litert, litert-micro or executorch, on "
            "this processor.",
            rich_help_panel=opt.RUN,
        ),
    ] = "onnxruntime",
    threads: Annotated[
        int, typer.Option(min=1, max=1024, help="Of the runtime.", rich_help_panel=opt.RUN)
    ] = 1,
    batch: Annotated[
        int, typer.Option(min=1, help="Images in one run.", rich_help_panel=opt.RUN)
    ] = 1,
    rounds: Annotated[
        int,
        typer.Option(
            min=5, help="Of all candidates of a layer, in turns.", rich_help_panel=opt.RUN
        ),
    ] = 21,
    forms: opt.Forms = None,
    model: opt.ModelFile = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    classes: opt.Classes = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    state_dict: opt.StateDict = None,
    config: opt.Config = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Time every layer of a network as one convolution and at many ranks, on this machine.

    `edgeclean compress --latency-table FILE` chooses ranks by it; the weights do not matter, so one
    table serves all networks of the architecture.
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    spec, code_folder = opt.model_spec(checkpoint, model, arch, input_shape, classes, mean, std)
    read = [*checkpoint_files(checkpoint), model, config, code_file(spec.architecture, code_folder)]
    keep_apart(read, files=[output])
    check_place(output, IS_TABLE)
    options = {**opt.load_options(state_dict), "ranks": {"forms": opt.forms_of(forms)}}
    settings, _ = opt.pipeline_settings(config, options, note=reporter.note)
    from edgeclean.config import settings_from
    from edgeclean.load.checkpoint import load_checkpoint
    from edgeclean.measure.block_latency import BlockLatencySettings
    from edgeclean.measure.machine_table import measured_table
    from edgeclean.networks.layers import conv_shapes, trace_layers

    how = settings_from(
        BlockLatencySettings,
        {
            **{"backend": backend, "runtime": runtime, "threads": threads},
            **{"batch": batch, "rounds": rounds},
        },
        where="options",
    )
    with reporter.progress() as progress:
        progress("Loading", 0, 1)
        network = load_checkpoint(checkpoint, spec, limits=settings.load, code_folder=code_folder)
        keep_apart(external_files(checkpoint, network), files=[output])
        progress("Loading", 1, 1)
        table = measured_table(network, how, ranks=settings.ranks, progress=progress)
        write_file(output, table.canonical(), ours=IS_TABLE)
    own = {*conv_shapes(trace_layers(network.module, network.spec.input_shape)).values()}
    facts = {**_facts(table), "layers": len(own & table.blocks.keys())}
    reporter.answer({"file": str(output), **facts}, _layers(table))
    opt.note_loading(checkpoint, network, reporter.note)
    reporter.note(f"table: {output}")


def _facts(table: LatencyTable) -> dict[str, object]:
    from dataclasses import asdict

    return {
        **asdict(table.facts()),
        "network": None if table.network is None else asdict(table.network),
        "shapes": len(table.blocks),
        "forms": sum(len(forms) for forms in table.blocks.values()),
    }


def _layers(table: LatencyTable) -> Table:
    """A row for each signature, the slowest first."""
    rows = plain_table("shape", "image", "stride", ">ms", ">spread", ">forms", ">faster")
    whole = {
        signature: next(form for form in forms if form.ranks is None)
        for signature, forms in table.blocks.items()
    }
    for one in sorted(whole, key=lambda one: -whole[one].ms):
        dense, forms = whole[one], table.blocks[one]
        shape = (one.channels_out, one.channels_in, *one.kernel)
        rows.add_row(
            *cells(*("x".join(str(side) for side in sides) for sides in (shape, one.image))),
            *cells("x".join(str(side) for side in one.stride)),
            *cells(f"{dense.ms:.3g}", f"{dense.spread_ms / dense.ms:.0%}", len(forms) - 1),
            *cells(sum(form.ms < dense.ms for form in forms)),
        )
    if table.network is not None:
        rows.add_section()
        spread = f"{table.network.spread_ms / table.network.ms:.0%}"
        rows.add_row(*cells("whole network", "", "", f"{table.network.ms:.3g}", spread, "", ""))
    return rows
