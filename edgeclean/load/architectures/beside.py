"""Import the user's own code from folders, as if they were on Python's path, and leave no trace.

Of each file the text that the user can read is compiled, never bytecode that came along, and none
is written. Modules of the standard library and what is imported already stay what they are.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch

from edgeclean.files.reading import is_regular

PACKAGE = "edgeclean_code"  # of files that import from their folder without a package
_RELATIVE = re.compile(rb"^[ \t]*from[ \t]+\.", re.MULTILINE)


@contextmanager
def importable(folders: Sequence[Path]) -> Iterator[None]:
    """Let imports find what lies in the folders, the first first; afterwards nothing is left.

    What was imported from there is forgotten, so that two folders with modules of one name do not
    get mixed up. The current folder is what it was, and so are PyTorch's type of numbers and
    whether it keeps gradients: files of networks set them at their top.
    """
    finder = _Finder(list(dict.fromkeys(str(folder.absolute()) for folder in folders)))
    before, dtype = set(sys.modules), torch.get_default_dtype()
    sys.meta_path.insert(0, finder)
    try:
        with chdir("."), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        torch.set_default_dtype(dtype)
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            loader = getattr(sys.modules[name], "__loader__", None)
            if finder.found(name) or isinstance(loader, _SourceAlone):
                del sys.modules[name]


@contextmanager
def same_device() -> Iterator[None]:
    """Let code set the device that PyTorch makes tensors on, until it ends."""
    before = torch.get_default_device()
    try:
        yield
    finally:
        if _default_device() != before:
            torch.set_default_device(None if before.type == "cpu" else before)


def name_and_folders(file: Path) -> tuple[str, list[Path]]:
    """Return what a file is called where it is imported, and the folders that this is found in.

    A file in a package is a module of it, a file beside others is found by its own name.
    """
    folder, parts = file.absolute().parent, [file.stem]
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    taken = sys.modules.get(parts[0])
    if len(parts) > 1 and (taken is not None or _is_standard(parts[0])):
        parts = parts[-1:]  # its package's name means another one
    return ".".join(parts), [file.absolute().parent, folder]


def import_file(file: Path, name: str) -> ModuleType:
    """Import a file under a name, within `importable`.

    Raises:
        FileNotFoundError: there is no such file. Any exception that its code raises, too.
    """
    if not is_regular(file):
        raise FileNotFoundError(file)
    if "." in name:
        return importlib.import_module(name)
    # Never in the place of another module, which code that is imported within may mean.
    if _RELATIVE.search(file.read_bytes()) or name in sys.modules or _is_standard(name):
        package = ModuleType(PACKAGE)
        package.__path__ = [str(file.absolute().parent)]
        sys.modules[PACKAGE] = package
        name = f"{PACKAGE}.{name}"
    loader = _SourceAlone(name, str(file))
    spec = ModuleSpec(name, loader, origin=str(file))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses resolve their annotations
    loader.exec_module(module)
    return module


def _default_device() -> torch.device | None:
    """Return where tensors are made; None for a device that this machine does not have."""
    try:
        return torch.get_default_device()
    except (AssertionError, RuntimeError):  # which of the two hangs on how PyTorch was built
        return None


class _Finder(MetaPathFinder):
    """Finds modules in some folders, and those in the packages that it found."""

    def __init__(self, folders: list[str]) -> None:
        self._folders = folders
        self._found = {PACKAGE}

    def find_spec(
        self,
        fullname: str,
        path: Any,  # a namespace has one of its own kind
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return where a module lies; see `importlib.abc.MetaPathFinder`."""
        parent, _, _ = fullname.rpartition(".")
        if _is_standard(fullname) or (parent and parent not in self._found):
            return None
        spec = PathFinder.find_spec(fullname, self._folders if not parent else path, target)
        if spec is None or isinstance(spec.loader, SourcelessFileLoader):
            return None
        if isinstance(spec.loader, SourceFileLoader):
            spec.loader = _SourceAlone(fullname, spec.loader.path)
            spec.cached = None
        self._found.add(fullname)
        return spec

    def found(self, name: str) -> bool:
        """Return whether a module came from these folders."""
        return name in self._found


def _is_standard(name: str) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names


class _SourceAlone(SourceFileLoader):
    """A loader of the text that the user can read, never of a ``__pycache__`` that came with it.

    Nor is one written: the user's folder is no output folder.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled text."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code
