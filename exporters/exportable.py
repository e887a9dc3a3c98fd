"""Whether ONNX can express a network, found out when it is loaded and not after the long stages."""

from __future__ import annotations

import torch

from edgeclean.errors import InputRejectedError, ParityError
from edgeclean.load.checkpoint import LoadLimits, written_out
from edgeclean.networks.state import LoadedNetwork
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.parity import ParitySettings, check_parity

_IMAGES = 3


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
        try:
            again = written_out(network, limits, "ONNX cannot express its code as it is")
            return again, _checked_file(again, export, parity)
        except (InputRejectedError, ParityError):
            raise error from None


def _checked_file(network: LoadedNetwork, export: ExportSettings, parity: ParitySettings) -> bytes:
    model = export_onnx(network, export)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(_IMAGES, *network.spec.input_shape, generator=generator)
    check_parity(network, model, pixels, parity)
    return model
