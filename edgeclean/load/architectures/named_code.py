"""Architectures whose code the user names: ``package.module:callable`` or ``file.py:callable``.

This runs that code. It is the user's own trust in the user's own file, never something that a
checkpoint can ask for: the name comes from an option or from a ``model.toml`` that the user chose.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from edgeclean.errors import UsageError
from edgeclean.files.reading import is_regular
from edgeclean.networks.state import ModelSpec


def build_named(name: str, spec: ModelSpec, code_folder: Path | None = None) -> nn.Module:
    """Import what ``name`` names, call it, and return its ``nn.Module``.

    Args:
        name: ``package.module:callable`` or ``file.py:callable``.
        spec: its ``classes`` and ``input_shape`` are passed by keyword, each only if the callable
            has such a parameter.
        code_folder: the folder that a relative ``file.py`` is relative to; the current folder if
            None.

    Raises:
        UsageError: there is no such file, module or callable, it raised, or it returned no module.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute.isidentifier():
        raise UsageError(f"--arch {name!r}: must be package.module:callable or file.py:callable")
    code = _import(module_name, name, code_folder)
    builder = getattr(code, attribute, None)
    if not callable(builder):
        raise UsageError(f"--arch {name!r}: there is no callable {attribute!r} in {module_name}")
    try:
        with _known(code):
            module = builder(**_accepted(builder, spec))
    except Exception as error:
        raise UsageError(f"--arch {name!r}: raised {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"--arch {name!r}: returned {type(module).__name__}; it must return a torch.nn.Module"
        )
    return module


def _import(module_name: str, name: str, code_folder: Path | None) -> ModuleType:
    try:
        if module_name.endswith(".py"):
            return _import_file((code_folder or Path()) / module_name)
        return importlib.import_module(module_name)
    except FileNotFoundError:
        raise UsageError(f"--arch {name!r}: there is no file {module_name}") from None
    except Exception as error:
        raise UsageError(
            f"--arch {name!r}: importing {module_name} raised {type(error).__name__}: {error}"
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not is_regular(path):
        raise FileNotFoundError(path)
    loader = _SourceAlone(path.stem, str(path))
    spec = ModuleSpec(path.stem, loader, origin=str(path))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    with _known(module):
        loader.exec_module(module)
    return module


@contextmanager
def _known(module: ModuleType) -> Iterator[None]:
    """Keep the module in `sys.modules` meanwhile, where dataclasses resolve their annotations.

    Not for good: two files of one name in two folders do not get mixed up. And not in the place of
    another module, which code that is imported within may mean.
    """
    name = module.__name__
    if name in sys.modules or _elsewhere(name, module.__file__):
        yield
        return
    sys.modules[name] = module
    try:
        yield
    finally:
        sys.modules.pop(name, None)


def _elsewhere(name: str, file: str | None) -> bool:
    """Return whether an import of this name would find another file."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return True
    if found is None:
        return False
    return found.origin is None or file is None or not Path(found.origin).samefile(file)


class _SourceAlone(SourceFileLoader):
    """A loader of the text that the user can read, never of a ``__pycache__`` that came with it.

    Nor is one written: the user's folder is no output folder.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled text."""
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _accepted(builder: Callable[..., Any], spec: ModelSpec) -> dict[str, Any]:
    offered = {"classes": spec.classes, "input_shape": spec.input_shape}
    parameters = inspect.signature(builder).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return offered
    names = {parameter.name for parameter in parameters}
    return {key: offering for key, offering in offered.items() if key in names}
