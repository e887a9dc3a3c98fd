"""Architectures whose code the user names: ``package.module:callable`` or ``file.py:callable``.

This runs that code. It is the user's own trust in the user's own file, never something that a
checkpoint can ask for: the name comes from an option or from a ``model.toml`` that the user chose.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from torch import nn

from edgeclean.errors import UsageError
from edgeclean.load.architectures.beside import (
    import_file,
    importable,
    name_and_folders,
    same_device,
)
from edgeclean.load.architectures.builders import CLASSES, call_builder
from edgeclean.networks.state import ModelSpec

_ENDED = "its code ended the program (sys.exit); put what only a script does under __main__"
NO_CODE = ("onnx", "timm", "torchvision")  # what begins with one of these names none of the user's


def build_named(name: str, spec: ModelSpec, code_folder: Path | None = None) -> nn.Module:
    """Import what ``name`` names, call it, and return its ``nn.Module``.

    The code may import what lies beside it: of a file, its folder and the package that it belongs
    to; of a module, the code folder.

    Args:
        name: ``package.module:callable`` or ``file.py:callable``; instead of a callable it may be
            a network.
        spec: what the callable is given of, see `call_builder`.
        code_folder: the folder that a relative ``file.py`` and a package are looked for in; the
            current folder if None.

    Raises:
        UsageError: there is no such file, module or callable, it raised, or it returned no module.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute.isidentifier():
        raise UsageError(f"--arch {name!r}: must be package.module:callable or file.py:callable")
    root = code_folder or Path()
    own, folders = module_name, list[Path]()
    if module_name.endswith(".py"):
        own, folders = name_and_folders(root / module_name)
    with importable([*folders, root]):
        with same_device():
            builder = getattr(_import(module_name, own, name, root), attribute, None)
        if not callable(builder):
            raise UsageError(
                f"--arch {name!r}: there is no callable {attribute!r} in {module_name}"
            )
        try:
            # A network is callable too, yet it builds none.
            network = isinstance(builder, nn.Module)
            with same_device():
                module = copy.deepcopy(builder) if network else call_builder(builder, spec)
        except KeyboardInterrupt:
            raise
        except SystemExit:
            raise UsageError(f"--arch {name!r}: {_ENDED}") from None
        except BaseException as error:  # code may raise a kind of its own, as pytest's Skipped is
            raise UsageError(
                f"--arch {name!r}: raised {type(error).__name__}: {error}{_hint(error)}"
            ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"--arch {name!r}: returned {type(module).__name__}; it must return a torch.nn.Module"
        )
    _refuse_meta(module, name)
    return module


def code_file(architecture: str, code_folder: Path | None = None) -> Path | None:
    """Return the file of the user's own architecture code; None for any other architecture.

    Nothing of it is run, but for the packages that a module lies in.
    """
    module_name, _, _ = architecture.rpartition(":")
    root = code_folder or Path()
    if module_name.endswith(".py"):
        return root / module_name
    if not module_name or module_name in NO_CODE:
        return None
    try:
        with importable([root]):
            found = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        return None  # the loader says what is wrong with it
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def _import(module_name: str, own: str, name: str, root: Path) -> ModuleType:
    """Import a file under its own name, or a module."""
    try:
        if module_name.endswith(".py"):
            return import_file(root / module_name, own)
        return importlib.import_module(module_name)
    except FileNotFoundError:
        raise UsageError(f"--arch {name!r}: there is no file {module_name}") from None
    except KeyboardInterrupt:
        raise
    except SystemExit:
        raise UsageError(f"--arch {name!r}: importing {module_name}: {_ENDED}") from None
    except BaseException as error:
        raise UsageError(
            f"--arch {name!r}: importing {module_name} raised {type(error).__name__}: {error}"
        ) from error


def _refuse_meta(module: nn.Module, name: str) -> None:
    for own, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise UsageError(
                f"--arch {name!r}: {own} is on PyTorch's device 'meta', where no numbers are; "
                "networks are loaded on the CPU: leave device='meta' out"
            )


def _hint(error: BaseException) -> str:
    """Return what may help, in words that follow the error; "" for nothing."""
    if "CUDA" in str(error):
        return "; networks are loaded on the CPU: leave .cuda() and device='cuda' out"
    if isinstance(error, TypeError) and "missing" in str(error):
        return (
            f"; it may ask for {CLASSES[1]} or input_shape. For anything else write a function "
            "that makes it: def make(num_classes): return Net(Config(num_classes))"
        )
    return ""
