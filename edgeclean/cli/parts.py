"""`edgeclean parts`: where the ready parts for build systems lie."""

from __future__ import annotations

import sys
from enum import StrEnum
from importlib import resources
from typing import Annotated

import typer

from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.options import AsJson, Quiet


class Part(StrEnum):
    """A build system that there are parts for: the folders under ``exporters/``."""

    cmake = "cmake"
    make = "make"
    yocto = "yocto"


def parts(
    part: Annotated[Part | None, typer.Argument(help="Print this folder alone.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print the folders with the CMake module, the Make include and the Yocto layer."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    folders = {
        one.value: str(resources.files("edgeclean.integrations").joinpath(one)) for one in Part
    }
    if part is not None and not as_json:
        sys.stdout.write(f"{folders[part]}\n")  # also when quiet: a build asks for nothing else
        return
    table = plain_table("part", "folder")
    for name, folder in folders.items():
        table.add_row(*cells(name, folder))
    reporter.answer(folders if part is None else {part.value: folders[part]}, table)
