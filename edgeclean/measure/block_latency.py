"""Measure a latency table: every candidate of every layer, in turns, on this machine.

A layer's candidates are its one convolution and its factorisations at every measured pair of ranks.
Each runs as a small network of its own with the layer's input shape, random weights, a bias and a
ReLU at its end. All candidates of a layer take turns, so whatever else the machine does, it does to
all of them; and their weights drive each other out of the caches, as a network's other layers do.
The processor's time for other programs is left out (`block_backends.milliseconds`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeclean.compression.factorisation import Ranks, order_of, part_shapes, ranks_as_json
from edgeclean.compression.latency_table import (
    FORMAT,
    LatencyTable,
    NetworkTime,
    TimedRanks,
    layers_digest,
)
from edgeclean.compression.rank_grids import measured_grid
from edgeclean.compression.settings import OF_LAYERS, Form
from edgeclean.environment import versions
from edgeclean.errors import UsageError
from edgeclean.measure.block_backends import Backend, chain_model, open_backend
from edgeclean.measure.block_runtimes import ConfinedBackend
from edgeclean.measure.block_turns import Run, take_rounds
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.networks.shapes import ConvShape
from edgeclean.networks.state import Network
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting
from exporters import EXPORTERS

ONNX_RUNTIME = "onnxruntime"
RUNTIMES = tuple(name for name in EXPORTERS if name != "tensorrt")
GROUP = 48  # candidates that are held in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLatencySettings(Settings):
    """Settings of the measurement of a latency table.

    Attributes:
        backend: "cpu" is the runtime on this machine's processor, "torch-cuda" PyTorch with CUDA
            graphs.
        runtime: "onnxruntime", or another that networks are converted for.
        threads: threads of the runtime inside one operator.
        batch: images in one run.
        rounds: rounds of a layer, in each of which every candidate runs once.
        layer_seconds: rounds of a layer end after about this time, but at least 5 are made.
    """

    backend: Literal["cpu", "torch-cuda"] = "cpu"
    runtime: str = setting(ONNX_RUNTIME, one_of=RUNTIMES)
    threads: int = setting(1, at_least=1, at_most=1024)
    batch: int = setting(1, at_least=1, at_most=2**16)
    rounds: int = setting(21, at_least=1, at_most=10**6)
    layer_seconds: float = setting(6.0, above=0, at_most=10**6)

    def check_together(self) -> None:
        """Refuse a runtime of the processor beside a GPU.

        Raises:
            UsageError: both were asked.
        """
        if self.backend != "cpu" and self.runtime != ONNX_RUNTIME:
            raise UsageError(
                f"{self.runtime} computes on the processor, and the backend {self.backend} was "
                "asked; leave one of the two out"
            )


@runtime_checkable
class Rows(Protocol):
    """A store of rows that were measured once, such as `edgeclean.files.store.Store`."""

    def get(self, key: str) -> bytes | None:
        """Return what was put under this key; None for nothing."""
        ...

    def put(self, key: str, contents: bytes) -> None:
        """Keep the contents under this key."""
        ...


def measure_table(  # noqa: PLR0913 - what is timed, and how
    network: Network,
    layers: Mapping[str, tuple[Ranks, ...]],
    *,
    model: bytes,
    settings: BlockLatencySettings,
    forms: Collection[Form] = OF_LAYERS,
    cuts: Mapping[ConvShape, Sequence[ConvShape]] | None = None,
    kept: Rows | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """Time these layers at all of their ranks, those of one shape once, and the whole network.

    Args:
        network: the network in its original shape.
        layers: names of the convolutions, each with ranks to measure besides `measured_grid`.
        model: the network as ONNX.
        settings: the length and the conditions of the measurement.
        forms: what layers may become; see `measured_grid`.
        cuts: layers with fewer channels, by the shape of the layer that they are timed beside.
        kept: store of earlier measurements: rows measured on this device before are taken from
            it, and new rows are added. Where layers take longer together than their network, as on
            a machine with other work, all are measured once more.
        progress: called after every shape.

    Raises:
        ToolchainError: the backend needs a device or a runtime that is not there.
        InputRejectedError: the runtime cannot load ``model``.
    """
    backend = _opened(settings)
    found = conv_shapes(trace_layers(network.module, network.spec.input_shape))
    extra: dict[ConvShape, set[Ranks]] = {
        one: set() for one in sorted(found[name] for name in layers if name in found)
    }
    for name in layers:
        if name in found:
            extra[found[name]] |= set(layers[name])
    asked = {shape: {*measured_grid(shape, forms), *ranks} for shape, ranks in extra.items()}
    measure = _Measuring(backend, settings, kept)
    smaller = cuts or {}
    table = measure.table(asked, smaller, model, found, progress)
    if not _can_be_planned_by(table, found, smaller):
        table = replace(measure, anew=True).table(asked, smaller, model, found, progress)
    return table


def _can_be_planned_by(
    table: LatencyTable,
    found: Mapping[str, ConvShape],
    cuts: Mapping[ConvShape, Sequence[ConvShape]],
) -> bool:
    """Whether the network takes longer than its layers could save together."""
    saved = 0.0
    for shape in (one for one in found.values() if one in table.blocks):
        whole, *rest = table.blocks[shape]
        fewer = [table.blocks[one][0] for one in cuts.get(shape, ())]
        saved += whole.ms - min(one.ms for one in (whole, *rest, *fewer))
    return table.network is not None and saved < table.network.ms


def _opened(settings: BlockLatencySettings) -> Backend | ConfinedBackend:
    if settings.runtime == ONNX_RUNTIME:
        return open_backend(settings.backend, threads=settings.threads, batch=settings.batch)
    return ConfinedBackend(settings.runtime, threads=settings.threads, batch=settings.batch)


@dataclass(frozen=True, slots=True)
class _Measuring:
    backend: Backend | ConfinedBackend
    settings: BlockLatencySettings
    kept: Rows | None
    anew: bool = False  # what was kept is measured once more

    def table(
        self,
        asked: Mapping[ConvShape, Collection[Ranks]],
        smaller: Mapping[ConvShape, Sequence[ConvShape]],
        model: bytes,
        found: Mapping[str, ConvShape],
        progress: Progress,
    ) -> LatencyTable:
        """Time layers at these ranks and with fewer channels, and their network."""
        steps = len(asked) + len(smaller) + 1
        blocks: dict[ConvShape, tuple[TimedRanks, ...]] = {}
        for done, (shape, ranks) in enumerate(asked.items()):
            progress("Timing layers", done, steps)
            blocks[shape] = self.block(shape, ranks)
        for done, (shape, shapes) in enumerate(smaller.items(), start=len(asked)):
            progress("Timing layers", done, steps)
            blocks = self.cuts(shape, [one for one in shapes if one not in blocks]) | blocks
        progress("Timing layers", steps - 1, steps)
        whole = self.network(model, layers_digest(found.values()))
        progress("Timing layers", steps, steps)
        return LatencyTable(
            device=self.backend.device,
            runtime=self.backend.runtime,
            threads=self.settings.threads,
            batch=self.settings.batch,
            precision="fp32",
            versions=versions(),
            network=whole,
            blocks=blocks,
        )

    def block(self, shape: ConvShape, every: Collection[Ranks]) -> tuple[TimedRanks, ...]:
        """Time the one convolution and its factorisations, in turns."""
        ranks = sorted(every, key=order_of)
        groups = [ranks[start : start + GROUP] for start in range(0, len(ranks), GROUP)] or [[]]
        named = [[ranks_as_json(one) for one in group] for group in groups]
        key = self._key("block", shape.as_json(), named)
        chains = [[part_shapes(shape, one) for one in group] for group in groups]
        whole, *rows = self._row(key, lambda: self._groups(shape, chains))
        timed = zip([None, *ranks], [whole, *rows], strict=True)
        return tuple(TimedRanks(ranks=one, ms=ms, spread_ms=spread) for one, (ms, spread) in timed)

    def cuts(
        self, shape: ConvShape, smaller: Sequence[ConvShape]
    ) -> dict[ConvShape, tuple[TimedRanks, ...]]:
        """Time one convolution with fewer channels, in turns with the whole one."""
        groups = [smaller[start : start + GROUP] for start in range(0, len(smaller), GROUP)]
        key = self._key("cuts", shape.as_json(), [[one.as_json() for one in g] for g in groups])
        chains = [[(one,) for one in group] for group in groups]
        rows = self._row(key, lambda: self._groups(shape, chains))[1:] if groups else []
        return {
            one: (TimedRanks(ranks=None, ms=ms, spread_ms=spread),)
            for one, (ms, spread) in zip(smaller, rows, strict=True)
        }

    def _groups(
        self, shape: ConvShape, groups: Sequence[Sequence[Sequence[ConvShape]]]
    ) -> list[list[float]]:
        """Time every group of candidates in turns with the one convolution, which comes first.

        Each group is scaled to the one convolution's median in the first group, so that a clock
        that changes between two groups changes no difference.
        """
        rows: list[list[float]] = []
        for group in groups:
            medians = _medians(self._turns([part_shapes(shape, None), *group], 1 / len(groups)))
            first = rows[0][0] if rows else medians[0][0]
            scale = first / medians[0][0]
            scaled = [[round(scale * number, 6) for number in row] for row in medians]
            rows += scaled if not rows else scaled[1:]
        return rows

    def _turns(self, chains: Sequence[Sequence[ConvShape]], share: float) -> NDArray[np.float64]:
        """Return milliseconds [rounds, chains] within this share of the layer's time."""
        backend, settings = self.backend, self.settings
        if not isinstance(backend, ConfinedBackend):
            return _rounds(backend.open(chains), settings, share=share)
        models = [chain_model(chain, settings.batch, pooled=True) for chain in chains]
        return backend.rounds(models, settings.rounds, share * settings.layer_seconds)

    def _alone(self, model: bytes) -> NDArray[np.float64]:
        """Return milliseconds [rounds, 1] of a whole network."""
        backend, settings = self.backend, self.settings
        if not isinstance(backend, ConfinedBackend):
            return _rounds([backend.open_model(model)], settings)
        return backend.rounds([model], settings.rounds, settings.layer_seconds)

    def network(self, model: bytes, digest: str) -> NetworkTime:
        """Time the whole network alone."""
        key = self._key("network", digest)
        ((ms, spread),) = self._row(key, lambda: _medians(self._alone(model)))
        return NetworkTime(layers_sha256=digest, ms=ms, spread_ms=spread)

    def _key(self, *names: Any) -> str:
        about = [FORMAT, self.backend.device, self.backend.runtime, asdict(self.settings), *names]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    def _row(self, key: str, measure: Callable[[], Any]) -> Any:
        stored = None if self.kept is None or self.anew else self.kept.get(key)
        if stored is not None:
            return json.loads(stored)
        row = measure()
        if self.kept is not None:
            self.kept.put(key, json.dumps(row).encode())
        return row


def _rounds(
    runs: Sequence[Run], settings: BlockLatencySettings, *, share: float = 1.0
) -> NDArray[np.float64]:
    """Return milliseconds [rounds, runs] within ``share`` of the layer's time, after a warm-up."""
    return take_rounds(runs, settings.rounds, share * settings.layer_seconds)


def _medians(latencies_ms: NDArray[np.float64]) -> list[list[float]]:
    """Return every column's median and interquartile range, rounded to the nanosecond."""
    low, median, high = np.percentile(latencies_ms, [25, 50, 75], axis=0)
    return [
        [round(float(ms), 6), round(float(spread), 6)]
        for ms, spread in zip(median, high - low, strict=True)
    ]
