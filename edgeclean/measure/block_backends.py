"""Run and time the small networks of a latency table: ONNX Runtime here, or PyTorch on a GPU.

The clocks leave out the processor's time for other programs, which is no part of a layer's time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgeclean.environment import describe_environment, versions
from edgeclean.errors import ToolchainError
from edgeclean.load.limits import LoadLimits
from edgeclean.measure.block_turns import Run, undisturbed_milliseconds
from edgeclean.measure.cuda_latency import captured, event_timed
from edgeclean.networks.shapes import ConvShape
from exporters.session import NAMES, open_bytes

OPSET = 17

Chain = Sequence[ConvShape]


@runtime_checkable
class Backend(Protocol):
    """One runtime on one device.

    Attributes:
        device: the device's name.
        runtime: the runtime's name and version.
    """

    device: str
    runtime: str

    def open(self, chains: Sequence[Chain]) -> list[Run]:
        """Return, for every chain, a function that runs its convolutions once and times them.

        Each returns milliseconds; chains of one call have the same input plane.
        """
        ...

    def open_model(self, model: bytes) -> Run:
        """Return a function that runs a whole ONNX network once and returns milliseconds."""
        ...


def open_backend(name: Literal["cpu", "torch-cuda"], *, threads: int, batch: int) -> Backend:
    """Return the backend of this name.

    Raises:
        ToolchainError: the backend's device is not here.
    """
    return OnnxBackend(threads=threads, batch=batch) if name == "cpu" else CudaBackend(batch=batch)


class OnnxBackend:
    """The backend of ONNX Runtime's CPU provider."""

    def __init__(self, *, threads: int, batch: int) -> None:
        self.device = describe_environment().processor
        self.runtime = f"onnxruntime {versions()['onnxruntime']}, {NAMES['cpu']}"
        self._threads = threads
        self._batch = batch

    def open(self, chains: Sequence[Chain]) -> list[Run]:
        """Implement `Backend.open`."""
        return [self.open_model(chain_model(chain, self._batch)) for chain in chains]

    def open_model(self, model: bytes) -> Run:
        """Implement `Backend.open_model`."""
        session = open_bytes(model, threads=self._threads)
        entry = session.get_inputs()[0]
        shape = [side if isinstance(side, int) else self._batch for side in entry.shape]
        feeds = {entry.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
        return lambda: milliseconds(lambda: session.run(None, feeds), threads=self._threads)


class CudaBackend:
    """The backend of PyTorch: networks are replayed from CUDA graphs and timed by CUDA events.

    Networks are float32, and their convolutions TF32 where PyTorch's default lets cuDNN do so.
    """

    def __init__(self, *, batch: int) -> None:
        if not torch.cuda.is_available():
            raise ToolchainError(
                "a table of torch-cuda was asked, and PyTorch sees no CUDA device here; install a "
                "CUDA build of PyTorch, or measure the cpu"
            )
        self.device = torch.cuda.get_device_name()
        self.runtime = f"torch {torch.__version__}, CUDA graph"
        self._batch = batch

    def open(self, chains: Sequence[Chain]) -> list[Run]:
        """Implement `Backend.open`."""
        return [
            self._timed(chain_module(chain), (chain[0].channels_in, *chain[0].image))
            for chain in chains
        ]

    def open_model(self, model: bytes) -> Run:
        """Implement `Backend.open_model`."""
        # As slow to import as all the rest together, and most runs time no network on a GPU.
        from edgeclean.load.onnx.importer import check_computed_as_written, import_onnx

        imported = import_onnx(model, LoadLimits(), folder=Path())
        check_computed_as_written(imported)
        return self._timed(imported.module, imported.input_shape)

    def _timed(
        self, module: nn.Module, shape: tuple[int, ...]
    ) -> Run:  # pragma: no cover - needs a GPU
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self._batch, *shape, generator=generator).cuda()
        return event_timed(captured(module.cuda().eval(), images))


def chain_model(chain: Chain, batch: int, *, pooled: bool = False) -> bytes:
    """Return a chain of convolutions as ONNX, with random weights, a bias and a ReLU at the end.

    The weights' scale keeps the numbers at any depth near one: denormal numbers are slow.

    Args:
        chain: the convolutions in order.
        batch: images in one run.
        pooled: whether the output is averaged to [n, channels], as runtimes want it that know
            nothing but logits; that is the same for every form of a layer.
    """
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for place, conv in enumerate(chain):
        shape = (conv.channels_out, conv.channels_in, *conv.kernel)
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        kernel = generator.standard_normal(shape, dtype=np.float32) * scale
        weights.append(numpy_helper.from_array(kernel, f"weight{place}"))
        inputs = [f"at{place}", f"weight{place}"]
        if place == len(chain) - 1:
            bias = np.zeros(conv.channels_out, dtype=np.float32)
            weights.append(numpy_helper.from_array(bias, "bias"))
            inputs.append("bias")
        nodes.append(helper.make_node("Conv", inputs, [f"at{place + 1}"], **_attributes(conv)))
    nodes.append(helper.make_node("Relu", [f"at{len(chain)}"], ["plane" if pooled else "out"]))
    if pooled:
        nodes.append(helper.make_node("GlobalAveragePool", ["plane"], ["mean"]))
        nodes.append(helper.make_node("Flatten", ["mean"], ["out"]))
    first = [batch, chain[0].channels_in, *chain[0].image]
    last = [batch, chain[-1].channels_out, *(() if pooled else chain[-1].image_out)]
    graph = helper.make_graph(
        nodes,
        "candidate",
        [helper.make_tensor_value_info("at0", TensorProto.FLOAT, first)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, last)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def chain_module(chain: Chain) -> nn.Module:
    """Return the same chain as stock PyTorch modules."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for place, conv in enumerate(chain):
        top, left, bottom, right = conv.padding
        layers[f"pad{place}"] = nn.ZeroPad2d((left, right, top, bottom))
        layers[f"conv{place}"] = nn.Conv2d(
            conv.channels_in,
            conv.channels_out,
            conv.kernel,
            stride=conv.stride,
            dilation=conv.dilation,
            padding=(top, left) if (top, left) == (bottom, right) else 0,
            bias=place == len(chain) - 1,
        )
        if (top, left) == (bottom, right):
            del layers[f"pad{place}"]
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def milliseconds(run: Callable[[], object], *, threads: int) -> float:
    """Return the milliseconds that a run takes when no other program needs the processor.

    On one thread this is the thread's own processor time, which equals wall time on an idle
    machine. On several threads it is the wall time of the first of at most eight runs in which no
    thread of this process was preempted: a scheduler takes the processor away for milliseconds,
    longer than most layers run. If every run was preempted, the shortest one counts.
    """
    if threads == 1:
        start = time.thread_time_ns()
        run()
        return (time.thread_time_ns() - start) / 1e6
    return undisturbed_milliseconds(run)


def _attributes(conv: ConvShape) -> dict[str, Any]:
    return {
        "kernel_shape": list(conv.kernel),
        "strides": list(conv.stride),
        "dilations": list(conv.dilation),
        "pads": list(conv.padding),
    }
