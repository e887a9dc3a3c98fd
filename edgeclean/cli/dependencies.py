"""Which files a command read, and the dependency file that tells a build tool of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclean.cli.files import write_file
from edgeclean.cli.options import RUN
from edgeclean.depfile import depfile
from edgeclean.errors import UsageError

if TYPE_CHECKING:
    from edgeclean.states import Network

Depfile = Annotated[
    Path | None,
    typer.Option(
        "--depfile",
        help="Write what model.onnx was made from, for Make or Ninja, once it is made.",
        rich_help_panel=RUN,
    ),
]


class InputFiles:
    """What a bundle is made from, in the order in which it was read.

    Its ``model.onnx`` is the target of the dependency file, named as the user named the folder.
    """

    def __init__(self, place: Path | None, output: Path) -> None:
        """Take where the dependency file goes (None for no such file) and the bundle's folder.

        Raises:
            UsageError: it would lie in the bundle.
        """
        if place is not None and place.resolve().is_relative_to(output.resolve()):
            raise UsageError(
                f"--depfile {place} lies in the bundle, which holds nothing but its own files; put "
                "it beside the bundle"
            )
        self._place, self._target = place, output / "model.onnx"
        self._files: list[Path] = []

    def add(self, *files: Path | None) -> None:
        """Note files, and folders whose entries matter; None for what was not given.

        Raises:
            UsageError: a name cannot be written: before the work, not after it.
        """
        self._files += [file for file in files if file is not None]
        if self._place is not None:
            depfile(self._target, self._files)

    def write(self) -> None:
        """Write the dependency file, where one is asked.

        Raises:
            UsageError: the place cannot be written; what was there is unchanged.
        """
        if self._place is not None:
            write_file(self._place, depfile(self._target, self._files))


def external_files(checkpoint: Path, network: Network) -> list[Path]:
    """The files beside an ONNX checkpoint that held its weights, as the loader noted them."""
    names = network.history[0].notes.get("external_sha256", {})
    return [checkpoint.parent / name for name in sorted(names)]


def code_file(architecture: str, code_folder: Path | None) -> Path | None:
    """The file of the user's own architecture code; None for a built-in one."""
    module_name, _, _ = architecture.rpartition(":")
    if module_name.endswith(".py"):
        return (code_folder or Path()) / module_name
    if not module_name:
        return None
    try:
        found = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        return None  # the loader says what is wrong with it
    return Path(found.origin) if found is not None and found.has_location and found.origin else None
