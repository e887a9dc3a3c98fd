"""`edgeclean targets`: what can be built for, and what is known of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.options import AsJson, JetPack, Quiet, TargetFile

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.devices.targets import Target


def targets(
    name: Annotated[str | None, typer.Argument(help="One target, with all its facts.")] = None,
    target_file: TargetFile = None,
    jetpack: JetPack = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the targets, or print every fact about one with its source."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    from edgeclean.devices.targets import list_targets, load_target

    if name is not None or target_file is not None:
        one = load_target(name, jetpack=jetpack, target_file=target_file)
        reporter.answer(asdict(one), _facts(one))
        return
    known = list_targets()
    table = plain_table("target", "what it is")
    for target in known:
        table.add_row(*cells(target.name, target.description))
    reporter.answer({"targets": [asdict(target) for target in known]}, table)


def _facts(target: Target) -> Table:
    table = plain_table("fact", "value", "source", title=target.description)
    for field, entry in asdict(target).items():
        if field not in ("name", "title", "sources") and entry not in (None, (), {}):
            table.add_row(*cells(field, _in_words(entry), target.sources.get(field, "")))
    return table


def _in_words(entry: object) -> str:
    if isinstance(entry, dict):
        return ", ".join(f"{key}: {value}" for key, value in entry.items())
    return ", ".join(map(str, entry)) if isinstance(entry, tuple | list) else str(entry)
