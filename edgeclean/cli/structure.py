"""What a graph's structure says, in the answers of `inspect`, `scan` and `compress`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeclean.cli.console import cells, plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.networks.structure import StructureReport


def structure_table(structure: StructureReport) -> Table:
    """Every finding and note as a line, or what was found instead."""
    table = plain_table("", "", title="Structure of the graph")
    for one in structure.findings:
        table.add_row(*cells(f"suspected: {one.kind}", one.in_words()))
    for one in structure.notes:
        table.add_row(*cells(f"noted: {one.kind}", one.in_words()))
    if structure.unlisted:
        table.add_row(*cells("", f"and {structure.unlisted} more like these"))
    table.add_row(*cells("learned layers", layers_in_words(structure)))
    return table


def layers_in_words(structure: StructureReport) -> str:
    """How many learned layers stand between the image and the logits."""
    if not structure.read:
        return "not read: the network is built by code that you trust, not by a graph in the file"
    least, most = structure.least_layers, structure.most_layers
    count = f"{most}" if least == most else f"{least} to {most}"
    return f"every path from the image to the logits passes {count}"


def structure_warning(structure: StructureReport) -> str:
    """One line where there is a finding, else nothing."""
    if not structure.findings:
        return ""
    more = len(structure.findings) - 1 + structure.unlisted
    also = f" (and {more} more: `edgeclean inspect` lists them)" if more else ""
    return (
        f"warning: {structure.findings[0].in_words()}{also}; no purification of weights removes "
        "what the graph itself does"
    )
