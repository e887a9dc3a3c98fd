"""What every runtime's exporter can do, so that nobody else needs to know which runtime it is.

Another runtime is another module with one class of the shape of `Exporter`, and its line in
`exporters.EXPORTERS`. The module can be imported where the runtime is not installed; `version`
then says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeclean.errors import UsageError
from edgeclean.files.text import shown
from edgeclean.networks.state import Network
from exporters import EXPORTERS
from exporters.confined_runtime import ConfinedExporter, HeldSettings


@runtime_checkable
class Runnable(Protocol):
    """A converted network that its runtime has loaded."""

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of exactly one batch [n, c, h, w] of normalised images.

        Raises:
            ToolchainError: the runtime or its device cannot run it.
        """
        ...


@runtime_checkable
class Exporter(Protocol):
    """One runtime: is it here, convert a network for it, and run what was converted.

    Attributes:
        name: of the runtime, as in `exporters.EXPORTERS`.
        needs: what to install for it, such as "edgeclean[tensorrt]".
    """

    name: str
    needs: str

    def version(self) -> str | None:
        """The installed runtime's version; None where it is not installed."""
        ...

    def convert(self, network: Network, model: bytes) -> dict[str, bytes]:
        """The files that the runtime loads, by name.

        Args:
            network: the finished network, for a runtime that takes it from PyTorch.
            model: the same network as an ONNX file in its final precision, for all others.

        Raises:
            ToolchainError: the runtime is not installed, or its device is missing.
            InputRejectedError: the runtime does not take the network.
        """
        ...

    def load(self, files: Mapping[str, bytes]) -> Runnable:
        """What `convert` made on this machine, ready to run; never give it a stranger's files.

        Raises:
            ToolchainError: the runtime is not installed, or its device is missing.
            InputRejectedError: the runtime cannot load them.
        """
        ...


def exporter_named(name: str) -> Exporter:
    """The exporter of a runtime, with its default settings.

    Raises:
        UsageError: no runtime has this name; says which there are.
    """
    if name not in EXPORTERS:
        known = ", ".join(EXPORTERS)
        raise UsageError(f"the runtime {shown(name)} is unknown; it must be one of {known}")
    made: Callable[[], Exporter] = _class_of(name)
    return made()


def confined_exporter(name: str, settings: HeldSettings | None = None) -> ConfinedExporter:
    """The exporter of a runtime that works in a confined process (`exporters.confined`).

    Raises:
        UsageError: the runtime is unknown, or takes ``model.onnx`` as it is.
    """
    found = exporter_named(name)
    if not isinstance(found, ConfinedExporter):
        raise UsageError(f"{name} takes the ONNX file as it is; there is nothing to convert")
    return type(found)(settings)


def _class_of(name: str) -> Any:
    module, _, class_name = EXPORTERS[name].partition(":")
    return getattr(importlib.import_module(module), class_name)
