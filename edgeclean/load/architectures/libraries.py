"""Architectures of libraries, where these are installed: ``timm:NAME`` and ``torchvision:NAME``.

Their code is trusted as every installed package is; weights are never fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import nn

from edgeclean.errors import UsageError
from edgeclean.files.text import first_line
from edgeclean.load.architectures.builders import call_builder
from edgeclean.networks.state import ModelSpec

_NAME = re.compile(r"[a-z0-9_]{1,100}(\.[a-z0-9_]{1,100})?", re.ASCII)


def is_of_library(name: str) -> bool:
    """Return whether a name begins as those of these libraries do."""
    return name.partition(":")[0] in _LIBRARIES


def build_of_library(name: str, spec: ModelSpec) -> nn.Module:
    """Build a library's network with weights of chance.

    Args:
        name: ``timm:NAME`` or ``torchvision:NAME``, as ``timm.list_models()`` and
            ``torchvision.models.list_models()`` give them.
        spec: gives the classes, and to timm the channels.

    Raises:
        UsageError: the library is not installed, has no such network, or failed.
    """
    library, _, model = name.partition(":")
    if not _NAME.fullmatch(model):
        raise UsageError(f"--arch {name!r}: {model!r} is no name of a network of {library}")
    try:
        return _LIBRARIES[library](model, spec)
    except ImportError as error:
        raise UsageError(
            f"--arch {name!r}: {library} cannot be imported ({first_line(error)}); install it "
            f"(pip install {library}), or name code of your own"
        ) from None
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"--arch {name!r}: {library} raised {type(error).__name__}: {first_line(error)}"
        ) from error


def _timm(model: str, spec: ModelSpec) -> nn.Module:
    import timm

    if not timm.is_model(model):
        raise UsageError(f"--arch 'timm:{model}': timm {timm.__version__} has no such network")
    module: nn.Module = timm.create_model(
        model,
        pretrained=False,
        num_classes=spec.classes,
        in_chans=spec.input_shape[0],
    )
    return module


def _torchvision(model: str, spec: ModelSpec) -> nn.Module:
    from torchvision import models

    if model not in models.list_models(module=models):
        raise UsageError(f"--arch 'torchvision:{model}': torchvision has no such classifier")
    module: nn.Module = call_builder(models.get_model_builder(model), spec)
    return module


_LIBRARIES: Mapping[str, Callable[[str, ModelSpec], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
}
