"""Measures a latency table: every form of every layer, in turns, on this machine.

A form is a small network of its own with the layer's real input, random weights, a bias and a
ReLU at its end. All forms of a layer take turns, so whatever else the machine does, it does to all
of them; and their weights drive each other out of the caches, as a network's other layers do. What
other programs take of the processor is left out (`quiet`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeclean.compression.candidates import measured_grid
from edgeclean.compression.factorisation import Ranks, part_shapes
from edgeclean.compression.latency_table import (
    FORMAT,
    LatencyTable,
    NetworkTime,
    TimedRanks,
    layers_digest,
)
from edgeclean.environment import versions
from edgeclean.measure.block_backends import Backend, Run, open_backend
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.networks.shapes import ConvShape
from edgeclean.networks.state import Network
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting

FEWEST_ROUNDS = 5
GROUP = 48  # forms that are held in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLatencySettings(Settings):
    """How to measure a table.

    Attributes:
        backend: "cpu" is ONNX Runtime's CPU provider, "torch-cuda" PyTorch with CUDA graphs.
        threads: of ONNX Runtime, inside one operator.
        batch: images in one run.
        rounds: of all forms of a layer.
        layer_seconds: rounds of a layer end after about this time, but at least 5 are made.
    """

    backend: Literal["cpu", "torch-cuda"] = "cpu"
    threads: int = setting(1, at_least=1, at_most=1024)
    batch: int = setting(1, at_least=1, at_most=2**16)
    rounds: int = setting(21, at_least=1, at_most=10**6)
    layer_seconds: float = setting(6.0, above=0, at_most=10**6)


@runtime_checkable
class Rows(Protocol):
    """Where rows that were measured once are kept, such as `resume.store.Store`."""

    def get(self, key: str) -> bytes | None:
        """What was put under this key."""
        ...

    def put(self, key: str, contents: bytes) -> None:
        """Keep it."""
        ...


def measure_table(
    network: Network,
    layers: Mapping[str, tuple[Ranks, ...]],
    *,
    model: bytes,
    settings: BlockLatencySettings,
    kept: Rows | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Time these layers at all of their ranks, those of one shape once, and the whole network.

    Args:
        network: in its original shape.
        layers: names of the convolutions, each with ranks to measure besides `measured_grid`.
        model: the network as ONNX.
        settings: see `BlockLatencySettings`.
        kept: rows measured before on this device are taken from here, new ones put there.
        progress: told after every shape.

    Raises:
        ToolchainError: the backend needs a device that is not there.
        InputRejectedError: ONNX Runtime cannot load ``model``.
    """
    backend = open_backend(settings.backend, threads=settings.threads, batch=settings.batch)
    found = conv_shapes(trace_layers(network.module, network.spec.input_shape))
    extra: dict[ConvShape, set[Ranks]] = {
        one: set() for one in sorted(found[name] for name in layers if name in found)
    }
    for name in layers:
        if name in found:
            extra[found[name]] |= set(layers[name])
    measure = _Measuring(backend, settings, kept)
    blocks: dict[ConvShape, tuple[TimedRanks, ...]] = {}
    for done, (shape, ranks) in enumerate(extra.items()):
        progress("Timing layers", done, len(extra) + 1)
        blocks[shape] = measure.block(shape, ranks)
    progress("Timing layers", len(extra), len(extra) + 1)
    whole = measure.network(model, layers_digest(found.values()))
    progress("Timing layers", len(extra) + 1, len(extra) + 1)
    return LatencyTable(
        device=backend.device,
        runtime=backend.runtime,
        threads=settings.threads,
        batch=settings.batch,
        precision="fp32",
        versions=versions(),
        network=whole,
        blocks=blocks,
    )


@dataclass(frozen=True, slots=True)
class _Measuring:
    backend: Backend
    settings: BlockLatencySettings
    kept: Rows | None

    def block(self, shape: ConvShape, extra: set[Ranks]) -> tuple[TimedRanks, ...]:
        """The one convolution and its forms, in turns."""
        ranks = sorted({*measured_grid(shape), *extra})
        groups = [ranks[start : start + GROUP] for start in range(0, len(ranks), GROUP)] or [[]]
        key = self._key("block", shape.as_json(), groups)
        whole, *rows = self._row(key, lambda: self._groups(shape, groups))
        timed = zip([None, *ranks], [whole, *rows], strict=True)
        return tuple(TimedRanks(ranks=one, ms=ms, spread_ms=spread) for one, (ms, spread) in timed)

    def _groups(self, shape: ConvShape, groups: Sequence[Sequence[Ranks]]) -> list[list[float]]:
        """The one convolution, and all forms; each group of them took turns with it.

        What the one convolution took in the first group is the measure of the others, so that a
        machine whose clock changes between two groups changes no difference.
        """
        rows: list[list[float]] = []
        for group in groups:
            runs = self.backend.open([part_shapes(shape, one) for one in (None, *group)])
            medians = _medians(_rounds(runs, self.settings, share=1 / len(groups)))
            first = rows[0][0] if rows else medians[0][0]
            scale = first / medians[0][0]
            scaled = [[round(scale * number, 6) for number in row] for row in medians]
            rows += scaled if not rows else scaled[1:]
        return rows

    def network(self, model: bytes, digest: str) -> NetworkTime:
        """The whole network alone."""
        key = self._key("network", digest)
        ((ms, spread),) = self._row(
            key, lambda: _medians(_rounds([self.backend.open_model(model)], self.settings))
        )
        return NetworkTime(layers_sha256=digest, ms=ms, spread_ms=spread)

    def _key(self, *parts: Any) -> str:
        about = [FORMAT, self.backend.device, self.backend.runtime, asdict(self.settings), *parts]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _row(self, key: str, measure: Callable[[], Any]) -> Any:
        stored = None if self.kept is None else self.kept.get(key)
        if stored is not None:
            return json.loads(stored)
        row = measure()
        if self.kept is not None:
            self.kept.put(key, json.dumps(row).encode())
        return row


def _rounds(
    runs: Sequence[Run], settings: BlockLatencySettings, *, share: float = 1.0
) -> NDArray[np.float64]:
    """Milliseconds [rounds, runs]; the first of each round moves on, and one round warms up.

    ``share`` of the layer's time is theirs.
    """
    for run in runs:
        run()
    deadline = time.perf_counter() + share * settings.layer_seconds
    latencies = np.empty((settings.rounds, len(runs)))
    for row in range(settings.rounds):
        if row >= FEWEST_ROUNDS and time.perf_counter() >= deadline:
            return latencies[:row]
        for place in range(len(runs)):
            column = (place + row) % len(runs)
            latencies[row, column] = runs[column]()
    return latencies


def _medians(latencies_ms: NDArray[np.float64]) -> list[list[float]]:
    """The median of every column, and what lies between its quartiles, to the nanosecond."""
    low, median, high = np.percentile(latencies_ms, [25, 50, 75], axis=0)
    return [
        [round(float(ms), 6), round(float(spread), 6)]
        for ms, spread in zip(median, high - low, strict=True)
    ]
