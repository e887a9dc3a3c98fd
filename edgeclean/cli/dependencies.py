"""The files that a command read, and the dependency file that lists them for a build tool."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclean.errors import UsageError
from edgeclean.files.atomic import resolved
from edgeclean.files.depfile import depfile, is_depfile
from edgeclean.files.reading import is_folder, open_regular
from edgeclean.files.writing import check_place, in_place, keep_apart

if TYPE_CHECKING:
    from edgeclean.networks.state import Network

MAX_DEPFILE_BYTES = 64 << 20  # of which one may be replaced


class InputFiles:
    """What a bundle is made from, in the order in which it was read.

    Its ``model.onnx`` is the target of the dependency file, named as the user named the folder.
    """

    def __init__(self, place: Path | None, output: Path) -> None:
        """Take where the dependency file goes (None for no such file) and the bundle's folder.

        Raises:
            UsageError: it would lie in the bundle, or replace what is no dependency file.
        """
        if place is not None and resolved(place).is_relative_to(resolved(output)):
            raise UsageError(
                f"--depfile {place} lies in the bundle, which holds nothing but its own files; put "
                "it beside the bundle"
            )
        if place is not None:
            check_place(place, _is_depfile)
        self._place, self._output, self._target = place, output, output / "model.onnx"
        self._files: list[Path] = []

    def add(self, *files: Path | None) -> None:
        """Note files, and folders whose entries matter; None for what was not given.

        Raises:
            UsageError: a name cannot be written: before the work, not after it.
        """
        self._files += [file for file in files if file is not None]
        if self._place is not None:
            depfile(self._target, self._files)

    def add_external(self, checkpoint: Path, network: Network) -> AbstractContextManager[None]:
        """Note the files that an ONNX checkpoint's weights came from, as soon as they are known.

        Returns:
            What `pipeline.compress` enters when all else is done: `written`.

        Raises:
            UsageError: a name cannot be written, or one of them would be replaced.
        """
        files = external_files(checkpoint, network)
        keep_apart(files, files=[self._place], folder=self._output)
        self.add(*files)
        return self.written()

    def written(self) -> AbstractContextManager[None]:
        """The dependency file in place, where one is asked, unless what is done within fails.

        Raises:
            UsageError: when it is entered: the place cannot be written; what was there is
                unchanged.
        """
        if self._place is None:
            return nullcontext()
        return in_place({self._place: depfile(self._target, self._files)}, ours=_is_depfile)


def _is_depfile(path: Path) -> bool:
    with open_regular(path) as stream:
        contents = stream.read(MAX_DEPFILE_BYTES + 1)
    return len(contents) <= MAX_DEPFILE_BYTES and is_depfile(contents)


def external_files(checkpoint: Path, network: Network) -> list[Path]:
    """The files beside an ONNX checkpoint that held its weights, as the loader noted them."""
    names = network.history[0].notes.get("external_sha256", {})
    return [checkpoint.parent / name for name in sorted(names)]


def checkpoint_files(checkpoint: Path) -> list[Path]:
    """The checkpoint's file, or those that are read of its folder."""
    if not is_folder(checkpoint):
        return [checkpoint]
    from edgeclean.load.hub_folder import files_of

    return files_of(checkpoint)


def code_file(architecture: str, code_folder: Path | None) -> Path | None:
    """The file of the user's own architecture code; None for a built-in one."""
    if ":" not in architecture:
        return None  # without importing PyTorch
    from edgeclean.load.architectures import named_code

    return named_code.code_file(architecture, code_folder)
