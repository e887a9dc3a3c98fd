"""Whether ONNX can express a network, found out when it is loaded and not after the long stages."""

from __future__ import annotations

import re

from edgeclean.errors import InputRejectedError, ParityError
from edgeclean.load.canonical.trial import under_autocast
from edgeclean.load.checkpoint import LoadLimits, written_out
from edgeclean.load.trial_images import trial_images
from edgeclean.networks.operations import Operation
from edgeclean.networks.state import LoadedNetwork
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.parity import ParitySettings, check_parity

_IMAGES = 4  # one of each kind
_OPERATION = re.compile(r"(?:aten::|operator )(\w+)")
_WAY_OUT = "compute it by other operations, or choose a target with a newer opset"


def exportable(
    network: LoadedNetwork, export: ExportSettings, parity: ParitySettings, limits: LoadLimits
) -> tuple[LoadedNetwork, bytes]:
    """The network in a form that the asked opset can express, and its ONNX file.

    Most networks are returned as they are. ONNX's exporter cannot follow some code that has an
    exact form in ONNX, such as sizes that are read and pooled over: that is written out as stock
    layers first.

    Args:
        network: as it was loaded, on the CPU.
        export: the opset and batch.
        parity: how closely the file must compute what the network does.
        limits: bounds what is written out.

    Raises:
        InputRejectedError: ONNX at this opset cannot express it.
        ParityError: the file computes something else.
    """
    try:
        return network, _checked_file(network, export, parity)
    except (InputRejectedError, ParityError) as error:
        _refuse_autocast(network)
        again = None
        try:
            again = written_out(network, limits, "ONNX cannot express its code as it is")
            return again, _checked_file(again, export, parity)
        except (InputRejectedError, ParityError) as second:
            if isinstance(error, ParityError):
                raise error from None
            if again is None:
                raise InputRejectedError(f"{error}; {second}") from None
            raise InputRejectedError(f"{error}{_place(str(second), again)}") from None


def _refuse_autocast(network: LoadedNetwork) -> None:
    """Say it where code rounds on its way: neither the exporter's words nor ours would tell."""
    where = under_autocast(network.module, trial_images(network.spec.input_shape, 1))
    if where:
        raise InputRejectedError(
            f"{where} computes under torch.autocast, which ONNX cannot express; call the network "
            "under autocast instead of within its forward"
        )


def _place(second: str, written: LoadedNetwork) -> str:
    """Say in which layer the operation is called that the exporter lacks, and what to do.

    What is written out has a module for each operation, which is named after the layer.
    """
    lacking = _OPERATION.search(second)
    if lacking is None:
        return ""
    calling = [
        name
        for name, one in written.module.named_modules()
        if isinstance(one, Operation) and lacking[1] in str(one.function)
    ]
    where = f" (called at {calling[0]})" if calling else ""
    return f"{where}; {_WAY_OUT}"


def _checked_file(network: LoadedNetwork, export: ExportSettings, parity: ParitySettings) -> bytes:
    model = export_onnx(network, export)
    check_parity(network, model, trial_images(network.spec.input_shape, _IMAGES), parity)
    return model
