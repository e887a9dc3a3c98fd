"""An ONNX Runtime session, made from bytes and never from a path.

Given a path, ONNX Runtime would follow the hard links of a stranger's external data; given bytes,
there is no folder to follow anything in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edgeclean.errors import InputRejectedError, ToolchainError
from edgeclean.runtime.bfloat16 import runnable
from edgeclean.runtime.providers import Provider, open_session


def open_bytes(model: bytes, *, threads: int, provider: Provider = "cpu") -> Any:
    """A bare session of ONNX Runtime's own class.

    Raises:
        InputRejectedError: ONNX Runtime cannot load it.
        ToolchainError: the provider is not installed, or cannot start.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # a failure comes as an exception, which says the same
    # Two sessions take turns in a measurement: threads of the one that waits must not spin on
    # the cores that the other one is measured on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return open_session(model, options, provider)
    except ToolchainError:
        raise
    except Exception as error:  # its exceptions share no narrower base class
        line = str(error).strip().splitlines()[0]
        raise InputRejectedError(f"ONNX Runtime cannot load the network: {line}") from error


class OnnxSession:
    """One loaded network: images in, logits out.

    Attributes:
        input_shape: channels, height and width of one image.
        batch: images per run, or None when the file leaves it open.
    """

    def __init__(self, model: bytes, *, threads: int = 1, provider: Provider = "cpu") -> None:
        """Load ``model``, which has one input [n, c, h, w] and one output, for ``threads`` threads.

        Raises:
            InputRejectedError: ONNX Runtime cannot load it, or it is not an image network.
            ToolchainError: the provider is not installed, or cannot start.
        """
        self._session: Any = open_bytes(runnable(model), threads=threads, provider=provider)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
            raise InputRejectedError(
                f"the ONNX network has {len(inputs)} inputs and {len(outputs)} outputs, with "
                f"{[tuple(one.shape) for one in inputs]} as input shapes; one input "
                "[n, channels, height, width] and one output are supported"
            )
        batch, *image = inputs[0].shape
        if not all(isinstance(length, int) and length > 0 for length in image):
            raise InputRejectedError(
                f"the ONNX network's input is {inputs[0].shape}; channels, height and width must "
                "be fixed: export it again with a fixed image size"
            )
        self.batch: int | None = batch if isinstance(batch, int) else None
        self.input_shape: tuple[int, int, int] = (image[0], image[1], image[2])
        self._input_name: str = inputs[0].name

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of exactly one batch [n, c, h, w], as it stands."""
        logits: NDArray[np.float32] = self._session.run(None, {self._input_name: images})[0]
        return logits

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of any number of images, in batches of the file's own size.

        The last batch is filled up with zeros, whose logits are thrown away: in evaluation mode no
        image changes another's.
        """
        batch = self.batch or min(len(images), 64)
        logits = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            filling = np.zeros((batch - len(part), *images.shape[1:]), dtype=np.float32)
            logits.append(self.run(np.concatenate([part, filling]))[: len(part)])
        return np.concatenate(logits)
