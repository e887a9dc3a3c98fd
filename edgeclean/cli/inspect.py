"""`edgeclean inspect`: what is in a network, and what a ratio would replace, without doing it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.structure import structure_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from edgeclean.compression.settings import RankSettings
    from edgeclean.report.layer_table import LayerRow, Spectrum

LEVELS = "▁▂▃▄▅▆▇█"
SPARKS = 16


def inspect(  # noqa: PLR0913 - the options are the interface
    checkpoint: opt.Checkpoint,
    ratio: Annotated[
        float | None,
        typer.Option(help="How many times fewer MACs (or parameters).", rich_help_panel=opt.RUN),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(help="What the ratio is of: macs or params.", rich_help_panel=opt.RUN),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A layer to leave whole; may be repeated.", rich_help_panel=opt.RUN),
    ] = None,
    forms: opt.Forms = None,
    target: opt.TargetName = None,
    jetpack: opt.JetPack = None,
    target_file: opt.TargetFile = None,
    model: opt.ModelFile = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    classes: opt.Classes = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    state_dict: opt.StateDict = None,
    config: opt.Config = None,
    seed: opt.Seed = None,
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """List the layers, what would become of each at a ratio, and what the graph's structure says.

    The ranks are chosen from the weights alone; `compress` also asks the synthetic images, so its
    ranks may differ a little.
    """
    reporter = Reporter(as_json=as_json, quiet=quiet)
    spec, code_folder = opt.model_spec(checkpoint, model, arch, input_shape, classes, mean, std)
    settings, _ = opt.pipeline_settings(
        config,
        {
            "seed": seed,
            "target": target,
            "jetpack": jetpack,
            **opt.load_options(state_dict),
            "decompose": {"keep": keep or None},
            "ranks": {"ratio": ratio, "measure": measure, "forms": opt.forms_of(forms)},
        },
        target_file,
        note=reporter.note,
    )
    opt.use_threads(threads)
    from edgeclean.pipeline import inspect_checkpoint

    with reporter.progress() as progress:
        inspected = inspect_checkpoint(
            checkpoint, spec, settings, code_folder=code_folder, progress=progress
        )
    opt.note_loading(checkpoint, inspected.network, reporter.note)
    if told := _other_ratio(settings.ranks, inspected.ratio):
        reporter.note(told)
    reporter.answer(
        {
            "source_sha256": inspected.network.source_sha256,
            "ratio": inspected.ratio,
            "layers": [asdict(row) for row in inspected.layers],
            "spectra": [asdict(curve) for curve in inspected.spectra],
            "structure": inspected.structure.summary(),
        },
        _table(inspected.layers, inspected.spectra),
        structure_table(inspected.structure),
    )


def _other_ratio(ranks: RankSettings, ratio: float) -> str | None:
    """Say that the plan is for another ratio than the default; None where it is not."""
    if ranks.has_goal or ratio == ranks.ratio_or_default:
        return None
    smaller = "; compress may also let them see smaller images" if ranks.may_resize else ""
    return (
        f"the layers cannot give the default, {ranks.ratio_or_default:g}x; the table is for "
        f"--ratio {ratio:.2f}, the most that they can{smaller}"
    )


def _table(rows: Sequence[LayerRow], curves: Sequence[Spectrum]) -> Table:
    from edgeclean.report.report import si_number

    spectrum = {curve.name: _sparkline(curve.before) for curve in curves}
    table = plain_table("layer", "shape", "spectrum", "becomes", ">params", ">MACs")
    for row in rows:
        shape = "x".join(str(side) for side in row.shape)
        table.add_row(
            *cells(row.name, shape, spectrum.get(row.name, ""), _fate(row)),
            *cells(_change(row.params_before, row.params_after, si_number)),
            *cells(_change(row.macs_before, row.macs_after, si_number)),
        )
    before, after = (
        sum(getattr(row, name) for row in rows) for name in ("macs_before", "macs_after")
    )
    params = [sum(getattr(row, name) for row in rows) for name in ("params_before", "params_after")]
    table.add_section()
    table.add_row(
        *cells("all of these", "", "", f"{before / max(1, after):.2f}x fewer MACs"),
        *cells(_change(params[0], params[1], si_number), _change(before, after, si_number)),
    )
    return table


def _fate(row: LayerRow) -> str:
    return row.becomes or row.reason or "stays one convolution"


def _change(before: int, after: int, shown: Callable[[int], str]) -> str:
    return shown(before) if before == after else f"{shown(before)} -> {shown(after)}"


def _sparkline(values: Sequence[float]) -> str:
    """At most 16 bars, evenly spread over the values; each is a share of the largest."""
    step = max(1, len(values) // SPARKS)
    return "".join(
        LEVELS[min(len(LEVELS) - 1, int(value * len(LEVELS)))] for value in values[::step][:SPARKS]
    )
