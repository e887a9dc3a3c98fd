"""Measure the original and the compressed network in turns on a CUDA device, in PyTorch.

Both are replayed from CUDA graphs. Events on the device mark the start and the end of each replay,
so neither Python nor the transfer of images is inside: the computation alone is measured, and the
report says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgeclean.environment import describe_environment
from edgeclean.errors import ToolchainError, UsageError
from edgeclean.load.limits import LoadLimits
from edgeclean.measure.latency import (
    UNSTABLE_COV,
    LatencyReport,
    LatencySettings,
    speedup_interval,
    summarise,
)
from edgeclean.measure.turns import FEWEST_RUNS

WARM_REPLAYS = 11  # PyTorch's own advice before a capture
TRANSFERS = "none: the input stays on the device; CUDA graph, timed by CUDA events"


def measure_pair_on_cuda(
    original: bytes, compressed: bytes, settings: LatencySettings | None = None
) -> LatencyReport:
    """Measure two float32 ONNX files of one input shape in turns, as PyTorch networks on the GPU.

    Args:
        original: the ONNX file to compare with.
        compressed: the ONNX file whose speed-up is measured.
        settings: the length and the conditions; ``threads`` and ``provider`` do not apply.

    Raises:
        ToolchainError: PyTorch sees no CUDA device.
        InputRejectedError: a file uses what the reader of ONNX networks does not take, such as
            quantise-dequantise pairs.
        UsageError: the two differ in input shape.
    """
    settings = settings or LatencySettings()
    if not torch.cuda.is_available():
        raise ToolchainError(
            "torch-cuda was asked, and PyTorch sees no CUDA device here; install a CUDA build of "
            "PyTorch, or use --provider cpu"
        )
    environment = describe_environment()
    imported = [_imported(one) for one in (original, compressed)]
    shapes = [shape for _, shape in imported]
    if shapes[0] != shapes[1]:
        raise UsageError(f"the networks take images {shapes[0]} and {shapes[1]}; only one can be")
    generator = torch.Generator().manual_seed(settings.seed)
    images = torch.randn(settings.batch, *shapes[0], generator=generator).cuda()
    replays = [captured(module.cuda().eval(), images) for module, _ in imported]
    deadline = time.perf_counter() + settings.time_budget_s
    _times(replays, settings.warmup_runs, deadline)
    latencies = _times(replays, settings.runs, deadline)
    samples = [summarise(latencies[:, column]) for column in (0, 1)]
    low, high = speedup_interval(latencies, np.random.default_rng(settings.seed))
    return LatencyReport(
        original=samples[0],
        compressed=samples[1],
        speedup=samples[0].p50_ms / samples[1].p50_ms,
        speedup_low=low,
        speedup_high=high,
        runtime=f"torch {torch.__version__}, CUDA graph",
        provider=torch.cuda.get_device_name(),
        threads=1,
        batch=settings.batch,
        input_shape=shapes[0],
        warmup_runs=settings.warmup_runs,
        settled=True,
        steady=max(one.coefficient_of_variation for one in samples) <= UNSTABLE_COV,
        out_of_time=len(latencies) < settings.runs,
        environment=environment,
        transfers=TRANSFERS,
    )


def _imported(model: bytes) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a network that PyTorch runs as the file says, and its image shape."""
    # As in block_backends: most commands time nothing on a GPU.
    from edgeclean.load.onnx.importer import check_computed_as_written, import_onnx

    imported = import_onnx(model, LoadLimits(), folder=Path())
    check_computed_as_written(imported)
    return imported.module, imported.input_shape


@dataclass(frozen=True, slots=True)
class Replay:
    """One captured run of a network.

    A CUDA graph reads weights and images at fixed addresses and keeps neither alive, so this
    object holds all three.
    """

    run: Callable[[], None]
    module: nn.Module
    images: torch.Tensor

    def __call__(self) -> None:
        """Replay the run once."""
        self.run()


def captured(module: nn.Module, images: torch.Tensor) -> Replay:  # pragma: no cover - needs a GPU
    """Capture one run of a network on these images, whose memory must stay where it is."""
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_REPLAYS):
                module(images)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            module(images)
    return Replay(graph.replay, module, images)


def event_timed(replay: Replay) -> Callable[[], float]:  # pragma: no cover - needs a GPU
    """Return a function that replays a run once and returns milliseconds between two events."""

    def run() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return run


def _times(
    replays: list[Replay], runs: int, deadline: float
) -> NDArray[np.float64]:  # pragma: no cover - needs a GPU
    """Return latencies [runs, 2] in milliseconds; the first of each pair alternates."""
    latencies = np.empty((runs, 2))
    timed = [event_timed(replay) for replay in replays]
    for row in range(runs):
        if row >= FEWEST_RUNS and time.perf_counter() >= deadline:
            return latencies[:row]
        for column in (0, 1) if row % 2 == 0 else (1, 0):
            latencies[row, column] = timed[column]()
    return latencies
