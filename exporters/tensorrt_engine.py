"""An engine that TensorRT built on this machine, loaded and run on its GPU.

It has not run where it was written (README). An engine is code: only one that was built here may
be loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeclean.errors import ToolchainError
from exporters.onnx_exporter import INPUT_NAME, OUTPUT_NAME


class LoadedEngine:  # pragma: no cover - needs TensorRT and a GPU
    """An engine on this machine's GPU, with room for one run at a time."""

    def __init__(self, trt: Any, contents: bytes, dla_core: int | None) -> None:
        """Load an engine that was built here.

        Raises:
            ToolchainError: it is not this machine's.
        """
        engine = opened(trt, contents, dla_core)
        self._engine = engine  # which must live as long as what it made
        self._context = engine.create_execution_context()

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of exactly one batch [n, c, h, w]; both lie in host memory.

        Raises:
            ToolchainError: the engine does not take these images, or its run failed.
        """
        context = self._context
        given = torch.from_numpy(np.ascontiguousarray(images)).cuda()
        if not context.set_input_shape(INPUT_NAME, tuple(given.shape)):
            raise ToolchainError(
                f"the engine does not take images {tuple(given.shape)}; it is fixed to the batch "
                "and the image size of its ONNX file"
            )
        logits = torch.empty(tuple(context.get_tensor_shape(OUTPUT_NAME)), device=given.device)
        context.set_tensor_address(INPUT_NAME, given.data_ptr())
        context.set_tensor_address(OUTPUT_NAME, logits.data_ptr())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # on which the images were copied
        if not context.execute_async_v3(stream.cuda_stream):
            raise ToolchainError("TensorRT could not run the engine; its own log says why")
        stream.synchronize()
        found: NDArray[np.float32] = logits.cpu().numpy()
        return found


def opened(
    trt: Any, contents: bytes, dla_core: int | None
) -> Any:  # pragma: no cover - needs TensorRT and a GPU
    """TensorRT's own engine object.

    Raises:
        ToolchainError: the engine was not built by this TensorRT for this device.
    """
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    if dla_core is not None:
        runtime.DLA_core = dla_core
    engine = runtime.deserialize_cuda_engine(contents)
    if engine is None:
        raise ToolchainError(
            f"TensorRT {trt.__version__} cannot load the engine, which must have been built by it "
            "on this device; build it again"
        )
    return engine
