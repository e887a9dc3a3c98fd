"""`edgeclean scan`: look for a backdoor, and change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.dependencies import checkpoint_files, code_file
from edgeclean.cli.structure import structure_table, structure_warning
from edgeclean.errors import BackdoorSuspectedError
from edgeclean.files.writing import keep_apart, new_folder

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.backdoor.findings import ScanReport


def scan(  # noqa: PLR0913 - the options are the interface
    checkpoint: opt.Checkpoint,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="A new folder for scan.json and the reconstructed triggers as PNG.",
            rich_help_panel=opt.RUN,
        ),
    ] = None,
    fail_on_backdoor: Annotated[
        bool,
        typer.Option(
            "--fail-on-backdoor",
            help="Exit with code 4 if one is suspected.",
            rich_help_panel=opt.RUN,
        ),
    ] = False,
    model: opt.ModelFile = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    classes: opt.Classes = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    state_dict: opt.StateDict = None,
    config: opt.Config = None,
    effort: opt.EffortLevel = None,
    seed: opt.Seed = None,
    threads: opt.Threads = None,
    gpu: opt.Gpu = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Search a network for a backdoor, without data; report what was searched and found."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    spec, code_folder = opt.model_spec(checkpoint, model, arch, input_shape, classes, mean, std)
    keep_apart(
        [*checkpoint_files(checkpoint), model, config, code_file(spec.architecture, code_folder)],
        folder=output,
    )
    settings, _ = opt.pipeline_settings(
        config,
        opt.run_options(seed, gpu, effort) | opt.load_options(state_dict),
        note=reporter.note,
    )
    opt.use_threads(threads)
    from edgeclean.pipeline import scan_checkpoint
    from edgeclean.report.page import trigger_files

    with new_folder(output) as write, reporter.progress() as progress:
        scanned = scan_checkpoint(
            checkpoint, spec, settings, code_folder=code_folder, progress=progress
        )
        found = scanned.report
        document = found.summary()
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        write({"scan.json": text.encode(), **trigger_files(found)})
    opt.note_loading(checkpoint, scanned.network, reporter.note)
    if found.selection is not None:
        reporter.note(f"{found.selection.in_words}.")
    reporter.answer(document, _verdict(found), structure_table(found.structure), _searches(found))
    if found.caveat:
        reporter.note(found.caveat)
    if fail_on_backdoor and found.verdict == "suspected":
        advice = "`edgeclean compress` purifies such a network"
        if found.structure.findings:
            advice = "no purification of weights removes what the graph itself does"
        raise BackdoorSuspectedError(
            f"{verdict_in_words(found)}, and --fail-on-backdoor was given; {advice}"
        )
    if found.structure.findings:
        reporter.note(structure_warning(found.structure))


def verdict_in_words(found: ScanReport) -> str:
    """Never "clean": a scan can only say what it did not find."""
    if found.verdict == "suspected":
        target = ", target " if found.suspects else " in "
        return f"backdoor suspected{target}{', '.join(found.suspicions)}"
    return found.quiet_in_words


def _verdict(found: ScanReport) -> Table:
    table = plain_table(
        "target", "from", "search", ">score", ">success", title=verdict_in_words(found)
    )
    for one in found.suspects:
        table.add_row(
            *cells(
                "another each" if one.target is None else one.target,
                "any class" if one.source is None else one.source,
                one.search,
                f"{one.score:.3g}",
                f"{one.success:.0%}",
            )
        )
    return table


def _searches(found: ScanReport) -> Table:
    table = plain_table("search", "sees", "blind to", title="What was searched")
    for search in found.searches:
        table.add_row(*cells(search.in_words, search.sees, search.blind_to))
    return table
