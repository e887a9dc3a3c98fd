"""ExecuTorch, PyTorch's own runtime for devices, with XNNPACK computing what it can.

Its converter takes PyTorch, so the checked ONNX file becomes stock layers again first, by our own
importer. Without the XNNPACK partitioner its portable kernels compute, which are far slower
(pytorch/executorch issue 1231). Images are given as contiguous [n, c, h, w].
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
from exporters.engines.tasks import fixed, read_shape, write_shape

FILE = "model.pte"
NEEDS = "edgeclean[executorch]"


class ExecuTorchEngine:
    """ExecuTorch in its confined process (see `exporters.engines.tasks.Engine`)."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Load for this machine's CPU.

        Raises:
            InputRejectedError: ExecuTorch cannot load the file.
            ToolchainError: ExecuTorch is not installed.
        """
        del precision  # it is the file's
        self._torch: Any = imported("torch", NEEDS)
        pool = imported("executorch.extension.pybindings.portable_lib", NEEDS)
        runtime = imported("executorch.runtime", NEEDS)
        batch, self.input_shape = read_shape(folder)
        self.batch: int | None = batch
        try:
            pool._unsafe_reset_threadpool(threads)  # there is no other way to say it
            self._program: Any = runtime.Runtime.get().load_program(str(folder / FILE))
            self._method: Any = self._program.load_method("forward")
            asked = self._method.metadata.input_tensor_meta(0).sizes()
            count = self._method.metadata.num_inputs(), self._method.metadata.num_outputs()
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(f"ExecuTorch cannot load it: {first_line(error)}") from error
        if count != (1, 1) or tuple(asked) != (batch, *self.input_shape):
            raise InputRejectedError(
                f"the program has {count[0]} inputs, the first {tuple(asked)}, and {count[1]} "
                f"outputs; one input {(batch, *self.input_shape)} and one output are needed"
            )

    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        """Import the ONNX file, and convert what came of it.

        Raises:
            InputRejectedError: the importer or ExecuTorch does not take the network.
            ToolchainError: ExecuTorch is not installed.
        """
        del precision  # FP32 alone
        sides = fixed(shape, "ExecuTorch")
        lowering = imported("executorch.exir", NEEDS)
        xnnpack = imported("executorch.backends.xnnpack.partition.xnnpack_partitioner", NEEDS)
        import torch  # in this process, as ExecuTorch needs it

        from edgeclean.load.limits import LoadLimits
        from edgeclean.load.onnx.importer import import_plain

        module = _without_empty(import_plain(model, LoadLimits()))
        try:
            exported = torch.export.export(module, (torch.zeros(*sides),))
            edge = lowering.to_edge_transform_and_lower(
                exported, partitioner=[xnnpack.XnnpackPartitioner()]
            )
            (folder / FILE).write_bytes(bytes(edge.to_executorch().buffer))
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(
                f"ExecuTorch does not take the network: {first_line(error)}"
            ) from error
        write_shape(folder, sides)

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [n, classes] of exactly one batch [n, c, h, w].

        Raises:
            InputRejectedError: ExecuTorch cannot run it.
        """
        given = self._torch.from_numpy(np.ascontiguousarray(images))
        try:
            (found,) = self._method.execute([given])
        except Exception as error:  # its exceptions share no narrower base class
            raise InputRejectedError(f"ExecuTorch cannot run it: {first_line(error)}") from error
        logits: NDArray[np.float32] = found.numpy()
        return logits


def _without_empty(module: Any) -> Any:
    """The module without buffers of no numbers, for which a program has no place in its file."""
    for part in module.modules():
        for name, tensor in list(part.named_buffers(recurse=False)):
            if tensor.numel() == 0:
                delattr(part, name)
    return module
