"""What runs the small networks of a latency table: ONNX Runtime here, or PyTorch on a GPU.

Clocks and runs that leave out what other programs take: it is no part of a layer's time.
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
from edgeclean.load.onnx.importer import import_onnx
from edgeclean.measure.cuda_latency import captured
from edgeclean.networks.shapes import ConvShape
from exporters.session import NAMES, open_bytes

TRIES = 8


def milliseconds(run: Callable[[], object], *, threads: int) -> float:
    """How long a run takes when nothing else wants the processor.

    On one thread that is the thread's own processor time, which equals the wall clock's on an idle
    machine. On several it is the wall clock's time of the first of at most eight runs in which no
    thread of this process was put aside: a scheduler takes the processor away for milliseconds,
    more than most layers take. If no run is left alone, the shortest one counts.
    """
    if threads == 1:
        start = time.thread_time_ns()
        run()
        return (time.thread_time_ns() - start) / 1e6
    shortest = float("inf")
    for _ in range(TRIES):
        before, start = _interruptions(), time.perf_counter_ns()
        run()
        ms = (time.perf_counter_ns() - start) / 1e6
        if _interruptions() == before:
            return ms
        shortest = min(shortest, ms)
    return shortest


def _interruptions() -> int:
    """Involuntary context switches of this process so far; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


OPSET = 17
Run = Callable[[], float]
Chain = Sequence[ConvShape]


@runtime_checkable
class Backend(Protocol):
    """One device with one runtime.

    Attributes:
        device: its name.
        runtime: with its version.
    """

    device: str
    runtime: str

    def open(self, chains: Sequence[Chain]) -> list[Run]:
        """Each gives the milliseconds of one run of a chain of convolutions; inputs are alike."""
        ...

    def open_model(self, model: bytes) -> Run:
        """The same of a whole network in ONNX."""
        ...


def open_backend(name: Literal["cpu", "torch-cuda"], *, threads: int, batch: int) -> Backend:
    """The backend of this name.

    Raises:
        ToolchainError: there is no such device here.
    """
    return OnnxBackend(threads=threads, batch=batch) if name == "cpu" else CudaBackend(batch=batch)


class OnnxBackend:
    """ONNX Runtime's CPU provider; see `Backend`."""

    def __init__(self, *, threads: int, batch: int) -> None:
        self.device = describe_environment().processor
        self.runtime = f"onnxruntime {versions()['onnxruntime']}, {NAMES['cpu']}"
        self._threads = threads
        self._batch = batch

    def open(self, chains: Sequence[Chain]) -> list[Run]:
        """See `Backend`."""
        return [self.open_model(chain_model(chain, self._batch)) for chain in chains]

    def open_model(self, model: bytes) -> Run:
        """See `Backend`."""
        session = open_bytes(model, threads=self._threads)
        entry = session.get_inputs()[0]
        shape = [side if isinstance(side, int) else self._batch for side in entry.shape]
        feeds = {entry.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
        return lambda: milliseconds(lambda: session.run(None, feeds), threads=self._threads)


class CudaBackend:
    """PyTorch, replayed from CUDA graphs and timed by events; see `Backend`.

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
        """See `Backend`."""
        return [
            self._timed(chain_module(chain), (chain[0].channels_in, *chain[0].image))
            for chain in chains
        ]

    def open_model(self, model: bytes) -> Run:
        """See `Backend`."""
        imported = import_onnx(model, LoadLimits(), folder=Path())
        return self._timed(imported.module, imported.input_shape)

    def _timed(
        self, module: nn.Module, shape: tuple[int, ...]
    ) -> Run:  # pragma: no cover - needs a GPU
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self._batch, *shape, generator=generator).cuda()
        replay = captured(module.cuda().eval(), images)

        def run() -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        return run


def chain_model(chain: Chain, batch: int) -> bytes:
    """Convolutions one after the other as ONNX, with random weights, a bias and a ReLU at the end.

    The scale of the weights keeps the numbers of any depth near one: denormal numbers are slow.
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
    nodes.append(helper.make_node("Relu", [f"at{len(chain)}"], ["out"]))
    first = [batch, chain[0].channels_in, *chain[0].image]
    last = [batch, chain[-1].channels_out, *chain[-1].image_out]
    graph = helper.make_graph(
        nodes,
        "form",
        [helper.make_tensor_value_info("at0", TensorProto.FLOAT, first)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, last)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def chain_module(chain: Chain) -> nn.Module:
    """The same as stock PyTorch modules."""
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


def _attributes(conv: ConvShape) -> dict[str, Any]:
    return {
        "kernel_shape": list(conv.kernel),
        "strides": list(conv.stride),
        "dilations": list(conv.dilation),
        "pads": list(conv.padding),
    }
