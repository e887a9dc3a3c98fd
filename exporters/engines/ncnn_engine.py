"""The engine of ncnn, Tencent's runtime for Arm: an ONNX file through its own converter, pnnx.

Only pnnx's program is started; its Python package would import PyTorch. ncnn's Python bindings do
not raise where loading fails, and crash when the network is run after that, so every return code is
looked at. Its default precision is FP16 or BF16 where the processor has it: what it may use is
always said.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclean.errors import InputRejectedError, ToolchainError
from edgeclean.processes import end_with_parent
from exporters.confined import imported
from exporters.engines.tasks import fixed, read_shape, write_shape

PARAM, WEIGHTS = "model.param", "model.bin"
IN, OUT = "in0", "out0"  # as pnnx names them
NEEDS = "edgeclean[ncnn]"


class NcnnEngine:
    """The ncnn runtime in its confined process (see `exporters.engines.tasks.Engine`)."""

    def __init__(self, folder: Path, precision: str, threads: int) -> None:
        """Load for this machine's CPU.

        Raises:
            InputRejectedError: ncnn cannot load the files.
            ToolchainError: ncnn is not installed.
        """
        self._ncnn = imported("ncnn", NEEDS)
        batch, self.input_shape = read_shape(folder)
        self.batch: int | None = batch
        network = self._ncnn.Net()
        options = network.opt
        options.num_threads = threads
        options.use_vulkan_compute = False
        options.openmp_blocktime = 0  # threads of the network that waits must not spin
        options.use_bf16_storage = options.use_bf16_packed = False
        half = precision == "fp16"
        options.use_fp16_packed = options.use_fp16_storage = half
        options.use_fp16_arithmetic = half
        for read, name in ((network.load_param, PARAM), (network.load_model, WEIGHTS)):
            if read(str(folder / name)) != 0:
                raise InputRejectedError(f"ncnn cannot load {name}")
        if network.input_names() != [IN] or network.output_names() != [OUT]:
            raise InputRejectedError(
                f"the network has the inputs {network.input_names()} and the outputs "
                f"{network.output_names()}; one of each is needed"
            )
        self._network = network

    @staticmethod
    def write(model: bytes, precision: str, shape: Sequence[int | None], folder: Path) -> None:
        """Start pnnx's program on the ONNX file.

        Raises:
            InputRejectedError: pnnx does not take the network.
            ToolchainError: pnnx is not installed, or crashed.
        """
        batch, *image = fixed(shape, "ncnn")
        if batch != 1:
            raise InputRejectedError(
                f"ncnn computes one image at a time, and the file is fixed to batch {batch}; "
                "export it with a batch of 1"
            )
        (folder / "model.onnx").write_bytes(model)
        sides = ",".join(map(str, (batch, *image)))
        half = int(precision == "fp16")
        parent = os.getpid()
        ended = subprocess.run(  # noqa: S603 - the installed program, and our own words
            [_program(), "model.onnx", f"inputshape=[{sides}]", f"fp16={half}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            preexec_fn=lambda: end_with_parent(parent),
            check=False,
        )
        if ended.returncode < 0:
            os.kill(parent, -ended.returncode)  # as if the converter were this process
        made = {PARAM: folder / "model.ncnn.param", WEIGHTS: folder / "model.ncnn.bin"}
        if ended.returncode or not all(path.is_file() for path in made.values()):
            raise InputRejectedError(
                f"pnnx does not take the network (its exit code is {ended.returncode})"
            )
        for name, path in made.items():
            path.rename(folder / name)
        write_shape(folder, shape)

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits [1, classes] of exactly one image [1, c, h, w].

        Raises:
            InputRejectedError: ncnn cannot run it.
        """
        extractor = self._network.create_extractor()
        # A copy of its own: a channel's rows start at multiples of 16 bytes there.
        image = self._ncnn.Mat(np.ascontiguousarray(images[0])).clone()
        code = extractor.input(IN, image)
        code, logits = (code, None) if code else extractor.extract(OUT)
        if code != 0 or logits is None or logits.dims != 1:
            raise InputRejectedError(f"ncnn cannot run the network (its return code is {code})")
        found: NDArray[np.float32] = np.array(logits)[None]
        return found


def _program() -> str:
    """Where pnnx's program lies; its package is not imported, for that would import torch."""
    package: Any = importlib.util.find_spec("pnnx")
    places = [] if package is None else list(package.submodule_search_locations or ())
    for place in places:
        program = Path(place) / "pnnx"
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    raise ToolchainError(f"pnnx is not installed here; pip install '{NEEDS}'")
