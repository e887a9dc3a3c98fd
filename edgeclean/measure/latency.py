"""Measure the latency of the original and of the compressed network side by side.

The two take turns, image batch by image batch, in one process: whatever else the machine does, it
does to both. A speed-up is the ratio of their medians and comes with its interval; a MAC ratio is
never called a latency. ONNX Runtime is measured on this machine; the numbers hold for no other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclean.environment import Environment, describe_environment
from edgeclean.measure.turns import PairTimes, Turns, time_loaded
from edgeclean.settings import Settings, setting
from exporters.session import NAMES, TRANSFERS, OnnxSession, Provider

UNSTABLE_COV = 0.025  # the same mark at which trtexec warns (sampleReporting.cpp)
RESAMPLES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySettings(Settings):
    """Settings of a latency measurement.

    Attributes:
        threads: threads of ONNX Runtime inside one operator.
        runs: measured runs of each network.
        warmup_runs: the most runs of each network before measuring; fewer when both have settled.
        batch: images in one run.
        time_budget_s: warm-up and measurement end after about this many seconds, with however many
            runs were made (but at least 5 of each).
        seed: seed of the random input and of the resampling.
        provider: execution provider of ONNX Runtime: cpu, cuda or tensorrt; refused where it is
            not installed.
    """

    threads: int = setting(1, at_least=1, at_most=1024)
    runs: int = setting(200, at_least=1, at_most=10**6)
    warmup_runs: int = setting(50, at_least=1, at_most=10**6)
    batch: int = setting(1, at_least=1, at_most=2**16)
    time_budget_s: float = setting(60.0, above=0, at_most=10**6)
    seed: int = setting(0, at_least=0, at_most=2**63 - 1)
    provider: Provider = "cpu"

    @property
    def turns(self) -> Turns:
        """The part of these settings that every runtime is measured by."""
        return Turns(
            runs=self.runs,
            warmup_runs=self.warmup_runs,
            batch=self.batch,
            time_budget_s=self.time_budget_s,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySample:
    """The latencies of one network, in milliseconds.

    Attributes:
        coefficient_of_variation: standard deviation over mean; above 0.025 the clocks or the
            machine's other work were not steady.
        latencies_ms: every measured run, in the order they were made.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float
    coefficient_of_variation: float
    runs: int
    latencies_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport:
    """The latencies of two networks that were measured in turns in one session.

    Attributes:
        speedup: the original's median over the compressed network's; above 1 for a faster one.
        speedup_low: lower end of the speed-up's 95 % interval, by resampling the pairs of runs.
        speedup_high: upper end of that interval.
        warmup_runs: runs of each network before the first one counted.
        settled: whether both medians had stopped moving when measuring began.
        steady: whether neither network's coefficient of variation is above 0.025.
        out_of_time: whether the time budget ended the measurement before all runs were made.
        transfers: whether moving data to the device is inside the latency.
        kind: "measured", as opposed to "simulated" or "estimated".
    """

    original: LatencySample
    compressed: LatencySample
    speedup: float
    speedup_low: float
    speedup_high: float
    runtime: str
    provider: str
    threads: int
    batch: int
    input_shape: tuple[int, int, int]
    warmup_runs: int
    settled: bool
    steady: bool
    out_of_time: bool
    environment: Environment
    transfers: str = "none: the input is in host memory"
    kind: str = "measured"


def measure_pair(
    original: bytes, compressed: bytes, settings: LatencySettings | None = None
) -> LatencyReport:
    """Measure two ONNX files of one input shape in turns on this machine.

    Args:
        original: the ONNX file to compare with.
        compressed: the ONNX file whose speed-up is measured.
        settings: the length and the conditions; the defaults measure 200 runs of each network on
            one thread.

    Returns:
        Percentiles of each network and the ratio of their medians with its spread.

    Raises:
        UsageError: the two differ in input shape, or a fixed batch is not the one in ``settings``.
        InputRejectedError: ONNX Runtime cannot load one of them.
        ToolchainError: the provider is not installed, or cannot start.
    """
    settings = settings or LatencySettings()
    environment = describe_environment()  # before measuring: the load that others make
    return report_of(time_pair(original, compressed, settings), settings, environment)


def time_pair(original: bytes, compressed: bytes, settings: LatencySettings) -> PairTimes:
    """Run two ONNX files in turns; see `measure_pair`, which makes a report of it."""
    first, second = (
        OnnxSession(model, threads=settings.threads, provider=settings.provider)
        for model in (original, compressed)
    )
    return time_loaded((first, second), settings.turns)


def report_of(
    times: PairTimes,
    settings: LatencySettings,
    environment: Environment,
    *,
    runtime: str | None = None,
) -> LatencyReport:
    """Return percentiles of each network and the ratio of their medians with its spread.

    Args:
        times: the runs.
        settings: the conditions.
        environment: the machine, before measuring.
        runtime: name and version of another runtime than ONNX Runtime, which ran on the CPU.
    """
    latencies = times.latencies_ms
    samples = [summarise(latencies[:, column]) for column in (0, 1)]
    low, high = speedup_interval(latencies, np.random.default_rng(settings.seed))
    return LatencyReport(
        original=samples[0],
        compressed=samples[1],
        speedup=samples[0].p50_ms / samples[1].p50_ms,
        speedup_low=low,
        speedup_high=high,
        runtime=runtime or f"onnxruntime {environment.versions['onnxruntime']}",
        provider=NAMES[settings.provider] if runtime is None else "CPU",
        threads=settings.threads,
        batch=settings.batch,
        input_shape=times.input_shape,
        warmup_runs=times.warmup_runs,
        settled=times.settled,
        steady=max(sample.coefficient_of_variation for sample in samples) <= UNSTABLE_COV,
        out_of_time=len(latencies) < settings.runs,
        environment=environment,
        transfers=TRANSFERS[settings.provider],
    )


def summarise(latencies_ms: NDArray[np.float64]) -> LatencySample:
    """Return percentiles and spread of one network's runs [n], in milliseconds."""
    p50, p90, p99 = np.percentile(latencies_ms, [50, 90, 99])
    mean = float(latencies_ms.mean())
    return LatencySample(
        p50_ms=float(p50),
        p90_ms=float(p90),
        p99_ms=float(p99),
        min_ms=float(latencies_ms.min()),
        mean_ms=mean,
        coefficient_of_variation=float(latencies_ms.std()) / mean,
        runs=len(latencies_ms),
        latencies_ms=tuple(round(float(latency), 6) for latency in latencies_ms),
    )


def speedup_interval(
    latencies_ms: NDArray[np.float64], generator: np.random.Generator
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the ratio of medians of runs [n, 2], in milliseconds.

    It is the percentile bootstrap; the two runs of a pair are drawn together.

    Source: Efron (1979), "Bootstrap methods: another look at the jackknife".
    """
    drawn = generator.integers(len(latencies_ms), size=(RESAMPLES, len(latencies_ms)))
    medians = np.median(latencies_ms[drawn], axis=1)
    low, high = np.percentile(medians[:, 0] / medians[:, 1], [2.5, 97.5])
    return float(low), float(high)
