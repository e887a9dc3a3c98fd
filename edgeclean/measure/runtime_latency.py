"""Measure the latency of two networks in another runtime, in turns in one confined process.

The way of measuring is that of `edgeclean.measure.latency`; the process that of
`exporters.confined`, for the runtime is native code that nobody here wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from edgeclean.child.inside import ChildLimits
from edgeclean.child.parcel import Parcel
from edgeclean.environment import describe_environment
from edgeclean.errors import ToolchainError
from edgeclean.measure.latency import (
    LatencyReport,
    LatencySettings,
    report_of,
)
from edgeclean.measure.runtime_turns import PAIR
from edgeclean.measure.turns import FEWEST_RUNS, times_told
from exporters.confined import run_confined

if TYPE_CHECKING:
    from exporters.confined_runtime import ConfinedExporter

TIME = "edgeclean.measure.runtime_turns:time_task"


def measure_runtime_pair(
    exporter: ConfinedExporter,
    original: Mapping[str, bytes],
    compressed: Mapping[str, bytes],
    settings: LatencySettings,
) -> LatencyReport:
    """Measure two converted networks of one input shape in turns on this machine's CPU.

    Args:
        exporter: the runtime; its precision is that of the compressed network.
        original: the files of the network to compare with, in float32.
        compressed: the files of the network whose speed-up is measured.
        settings: the length and the conditions.

    Returns:
        As `measure_pair`.

    Raises:
        UsageError: the two differ in input shape, or a fixed batch is not the one in ``settings``.
        InputRejectedError: the runtime cannot load one of them.
        ToolchainError: the runtime is not installed, or crashed.
    """
    environment = describe_environment()  # before measuring: the load that others make
    both = zip(PAIR, (original, compressed), strict=True)
    given = Parcel(
        facts={**exporter.facts(), "threads": settings.threads, "turns": asdict(settings.turns)},
        files={f"{name}/{file}": files[file] for name, files in both for file in exporter.files},
    )
    doing = f"{exporter.title}: measuring the latency"
    answer = run_confined(TIME, given, doing, _for_all_runs(exporter.limits, settings))
    nonsense = ToolchainError(f"{doing} answered nonsense")
    times = times_told(answer, settings.turns, nonsense)
    return report_of(times, settings, environment, runtime=exporter.title)


def _for_all_runs(limits: ChildLimits, settings: LatencySettings) -> ChildLimits:
    """Return the limits of the whole measurement, which its settings bound by time."""
    seconds = int(settings.time_budget_s) + 1
    cpu = limits.cpu_seconds + settings.threads * seconds * (1 + FEWEST_RUNS)
    return replace(
        limits,
        cpu_seconds=min(cpu, 10**6),
        wall_seconds=min(limits.wall_seconds + 10 * seconds, 10**7),
    )
