"""An ONNX Runtime session, made from bytes and never from a path.

Given a path, ONNX Runtime would follow the hard links of a stranger's external data; given bytes,
there is no folder to follow anything in. A session runs on the provider that was asked (CPU, CUDA
or TensorRT) and never on a silent substitute.

ONNX Runtime's CPU provider has no bfloat16 convolutions. What is run in place of a BF16 file has
the same rounded weights in float32 arithmetic, so it shows what the rounding of weights does, and
not the rest.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgeclean.errors import InputRejectedError, ToolchainError
from edgeclean.files.text import first_line

Provider = Literal["cpu", "cuda", "tensorrt"]
NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
# Behind the first one, what takes over the operators that it lacks.
CHAINS = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "cpu"),
    "tensorrt": ("tensorrt", "cuda", "cpu"),
}
TRANSFERS = {
    "cpu": "none: the input is in host memory",
    "cuda": "included: input from and output to host memory",
    "tensorrt": "included: input from and output to host memory",
}


def require_provider(provider: Provider) -> None:
    """Refuse a provider that the installed ONNX Runtime was not built with.

    Raises:
        ToolchainError: the message says what is there and what would bring the provider.
    """
    available = onnxruntime.get_available_providers()
    if NAMES[provider] not in available:
        here = [name for name, full in NAMES.items() if full in available]
        raise ToolchainError(
            f"the provider {provider} was asked, and the ONNX Runtime here has {', '.join(here)}; "
            "install onnxruntime-gpu (in place of onnxruntime) with the CUDA and TensorRT "
            "libraries that it names, or use cpu"
        )


def open_session(model: bytes, options: Any, provider: Provider) -> Any:
    """Open an ONNX Runtime session that runs on the asked provider.

    Raises:
        ToolchainError: the provider is missing, or it is there and cannot start (ONNX Runtime
            would go on with the next one, and measure that).
    """
    require_provider(provider)
    chain = [NAMES[name] for name in CHAINS[provider]]
    available = onnxruntime.get_available_providers()
    session = onnxruntime.InferenceSession(
        model, options, providers=[name for name in chain if name in available]
    )
    if session.get_providers()[0] != NAMES[provider]:
        raise ToolchainError(
            f"the provider {provider} could not start here, and ONNX Runtime went on with "
            f"{session.get_providers()[0]}; check its libraries and the device, or use cpu"
        )
    return session


def runnable(model: bytes) -> bytes:
    """The same bytes; of a file with bfloat16 weights, the same weights in float32 arithmetic."""
    try:
        proto = onnx.load_model_from_string(model)
    except DecodeError:
        return model  # the runtime says what is wrong with it
    tensors = [*proto.graph.initializer]
    tensors += [a.t for node in proto.graph.node for a in node.attribute if a.HasField("t")]
    brain = [tensor for tensor in tensors if tensor.data_type == TensorProto.BFLOAT16]
    if not brain:
        return model
    for tensor in brain:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = (
                    TensorProto.FLOAT if attribute.i == TensorProto.BFLOAT16 else attribute.i
                )
    del proto.graph.value_info[:]
    contents: bytes = proto.SerializeToString(deterministic=True)
    return contents


def open_bytes(model: bytes, *, threads: int, provider: Provider = "cpu") -> Any:
    """Open a bare session of ONNX Runtime's own class.

    Args:
        model: the ONNX file.
        threads: inside one operator.
        provider: what it computes with.

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
        raise InputRejectedError(
            f"ONNX Runtime cannot load the network: {first_line(error)}"
        ) from error


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
        """The logits [n, classes] of exactly one batch [n, c, h, w], as it stands.

        Raises:
            InputRejectedError: the file cannot compute them: it is wrong for this many images.
        """
        try:
            logits: NDArray[np.float32] = self._session.run(None, {self._input_name: images})[0]
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(
                f"ONNX Runtime cannot run the network: {first_line(error)}"
            ) from error
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
