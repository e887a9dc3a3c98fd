"""OpenVINO, Intel's runtime: an ONNX file as its intermediate representation, an XML with weights.

Two of its defaults are undone here. It would write all weights in FP16 unless told not to, and on
processors that have BF16 it would compute in that, at a relative error of 4e-3; what it computes in
is therefore always said. INT8 comes from the network's own QuantizeLinear and DequantizeLinear,
which OpenVINO's CPU plugin takes into int8 kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from exporters.confined import imported

XML, WEIGHTS = "model.xml", "model.bin"
NEEDS = "edgeclean[openvino]"


class OpenVINOEngine:
    """OpenVINO in its confined process (see `exporters.engines.tasks.Engine`)."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Compile for this machine's CPU.

        Raises:
            InputRejectedError: OpenVINO cannot load the files.
            ToolchainError: OpenVINO is not installed.
        """
        del precision  # it is the file's
        core = _openvino().Core()
        how = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the machine may have other work on those cores
        }
        try:
            compiled = core.compile_model(core.read_model(folder / XML), "CPU", how)
            if len(compiled.inputs) != 1 or len(compiled.outputs) != 1:
                raise InputRejectedError("the network must have one input and one output")
            batch, *image = compiled.input(0).get_partial_shape()
        except InputRejectedError:
            raise
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(f"OpenVINO cannot load it: {first_line(error)}") from error
        if len(image) != 3 or not all(side.is_static for side in image):
            raise InputRejectedError(f"OpenVINO reads images {image}; their sizes must be fixed")
        channels, height, width = (int(side.get_length()) for side in image)
        self.input_shape = channels, height, width
        self.batch = int(batch.get_length()) if batch.is_static else None
        self._compiled, self._request = compiled, compiled.create_infer_request()

    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        """Read the ONNX file from memory, and save it.

        Raises:
            InputRejectedError: OpenVINO does not take the network.
            ToolchainError: OpenVINO is not installed.
        """
        del shape  # it is the file's, and a batch that is open stays open
        openvino = _openvino()
        try:
            network = openvino.Core().read_model(model, b"")
            openvino.save_model(network, folder / XML, compress_to_fp16=precision == "fp16")
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(
                f"OpenVINO does not take the network: {first_line(error)}"
            ) from error

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of exactly one batch [n, c, h, w].

        Raises:
            InputRejectedError: OpenVINO cannot run it.
        """
        try:
            found = self._request.infer({0: images}, share_inputs=True)
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(f"OpenVINO cannot run it: {first_line(error)}") from error
        logits: NDArray[np.float32] = found[self._compiled.output(0)]
        return logits


def _openvino() -> Any:
    return imported("openvino", NEEDS)
