"""MNN, Alibaba's runtime for phones: an ONNX file through the converter within its package.

``MNN.tools`` is never imported: importing its converter installs packages by pip and sends a log
with an identifier of the machine. The native converter beneath it is called itself. Whatever that
does, the process that it runs in has no network and writes nowhere else.

INT8 is of the weights alone. Its quantiser, which makes all of INT8, aborts when it is called as
MNN's own wrapper calls it, and crashes where a folder of its images lacks a file (MNN 3.6.1).
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from exporters.confined import imported
from exporters.engines.tasks import fixed

FILE = "model.mnn"
# What MNN calls memory and arithmetic of a precision.
MODES = {"fp32": "high", "fp16": "low", "int8": "high"}
NEEDS = "edgeclean[mnn]"
_IDENTIFIER = re.compile(  # of a random UUID, as a string of a flatbuffer with its length
    rb"(?<=\x24\x00\x00\x00)[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}(?=\x00)"
)


class MNNEngine:
    """MNN in its confined process (see `exporters.engines.tasks.Engine`)."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Load for this machine's CPU.

        Raises:
            InputRejectedError: MNN cannot load the file.
            ToolchainError: MNN is not installed.
        """
        self._mnn: Any = imported("MNN", NEEDS)
        how = {"backend": "CPU", "precision": MODES[precision], "numThread": threads}
        try:
            self._network: Any = self._mnn.Interpreter(str(folder / FILE))
            self._session = self._network.createSession(how)
            inputs: dict[str, Any] = self._network.getSessionInputAll(self._session)
            outputs: dict[str, Any] = self._network.getSessionOutputAll(self._session)
            shapes = [tuple(one.getShape()) for one in inputs.values()]
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(f"MNN cannot load it: {first_line(error)}") from error
        if len(outputs) != 1 or len(shapes) != 1 or len(shapes[0]) != 4 or min(shapes[0]) < 1:
            raise InputRejectedError(
                f"MNN reads inputs {shapes} and {len(outputs)} outputs; one input of images and "
                "one output are needed"
            )
        ((batch, channels, height, width),) = shapes
        self.batch: int | None = int(batch)
        self.input_shape = int(channels), int(height), int(width)
        (self._input,), (self._output,) = inputs.values(), outputs.values()

    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        """Call the native converter on the ONNX file.

        Raises:
            InputRejectedError: MNN does not take the network.
            ToolchainError: MNN is not installed.
        """
        fixed(shape, "MNN")
        source = folder / "model.onnx"
        source.write_bytes(model)
        words = ["MNNConvert", "-f", "ONNX", "--modelFile", str(source)]
        words += ["--MNNModel", str(folder / FILE), "--bizCode", "edgeclean"]
        words += {"fp16": ["--fp16"], "int8": ["--weightQuantBits", "8"]}.get(precision, [])
        tools: Any = imported("_tools", NEEDS)  # the package's, at the top of its wheel
        try:
            tools.mnnconvert(words)
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(
                f"MNN does not take the network: {first_line(error)}"
            ) from error
        if (folder / FILE).is_file():
            (folder / FILE).write_bytes(_named((folder / FILE).read_bytes(), model))

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of exactly one batch [n, c, h, w].

        Raises:
            InputRejectedError: MNN cannot run it.
        """
        mnn = self._mnn
        # It computes on blocks of four channels: a tensor of plain layout goes in and comes out.
        plain, kind = mnn.Tensor_DimensionType_Caffe, mnn.Halide_Type_Float
        given = mnn.Tensor(tuple(images.shape), kind, np.ascontiguousarray(images), plain)
        self._input.copyFrom(given)
        if self._network.runSession(self._session) != 0:
            raise InputRejectedError("MNN cannot run the network")
        shape = tuple(self._output.getShape())
        logits = mnn.Tensor(shape, kind, np.zeros(shape, np.float32), plain)
        self._output.copyToHostTensor(logits)
        found: NDArray[np.float32] = np.array(logits.getNumpyData(), np.float32)
        return found


def _named(made: bytes, model: bytes) -> bytes:
    """The file under the identifier of its source, in place of one drawn anew at every conversion.

    Equal networks give equal bytes then.
    """
    found = _IDENTIFIER.findall(made)
    own = uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(model).hexdigest())
    return _IDENTIFIER.sub(str(own).encode(), made) if len(found) == 1 else made
