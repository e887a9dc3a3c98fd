"""Measure the latency of two networks that came from strangers.

Each is tried first, in a limited process (see ``exporters.trial``): what it costs is counted, and
it runs once. Then both are measured in turns, as `measure_pair` does, in a limited process of their
own; only the times come back. A GPU's driver reserves more addresses than any limit of memory
allows, so a GPU is measured in this process, with networks that passed the trial.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace

from edgeclean.child.parcel import Parcel
from edgeclean.environment import describe_environment
from edgeclean.errors import InputRejectedError
from edgeclean.files.text import first_line
from edgeclean.load.isolation import parse_isolated
from edgeclean.load.limits import LoadLimits
from edgeclean.measure.latency import (
    LatencyReport,
    LatencySettings,
    measure_pair,
    report_of,
    time_pair,
)
from edgeclean.measure.turns import FEWEST_RUNS, check_comparable, times_told
from exporters.session import require_provider
from exporters.trial import try_network

THREAD_BYTES = 2**27  # a stack and an arena of malloc, which are reserved and hardly used
_DEFAULT_LIMITS = LoadLimits()


def measure_untrusted_pair(
    original: bytes,
    compressed: bytes,
    settings: LatencySettings,
    *,
    names: tuple[str, str] = ("the original", "the compressed network"),
    limits: LoadLimits = _DEFAULT_LIMITS,
) -> LatencyReport:
    """Measure two ONNX files of one input shape in turns, neither of which is trusted.

    Args:
        original: the ONNX file to compare with.
        compressed: the ONNX file whose speed-up is measured.
        settings: the length and the conditions.
        names: of the two files, for messages.
        limits: the most that one image may cost, and that their process may take: its memory grows
            with the batch and the threads, its processor time with the time budget.

    Returns:
        As `measure_pair`.

    Raises:
        InputRejectedError: a file is not plain ONNX of an image network, or passes a limit.
        UsageError: the two differ in input shape, or a fixed batch is not the one in ``settings``.
        ToolchainError: the provider is not installed, or cannot start.
    """
    require_provider(settings.provider)
    pair = zip((original, compressed), names, strict=True)
    tried = [try_network(model, name, limits) for model, name in pair]
    check_comparable(tried[0], tried[1], settings.batch)
    if settings.provider != "cpu":
        return measure_pair(original, compressed, settings)
    environment = describe_environment()  # before measuring: the load that others make
    files = {"original": original, "compressed": compressed}
    given = Parcel(facts={"settings": asdict(settings)}, files=files)
    answer = parse_isolated(time_task, given, _for_all_runs(limits, settings))
    nonsense = InputRejectedError("the process that measured the networks answered nonsense")
    return report_of(times_told(answer, settings.turns, nonsense), settings, environment)


def time_task(given: Parcel) -> Parcel:
    """Time what `measure_untrusted_pair` gives; its child process calls this.

    Raises:
        InputRejectedError: ONNX Runtime cannot load or run a network.
    """
    settings = LatencySettings(**given.facts["settings"])
    try:
        pair = given.files["original"], given.files["compressed"]
        return time_pair(*pair, settings).packed()
    except (MemoryError, InputRejectedError):
        raise
    except Exception as error:  # noqa: BLE001 - the runtime's exceptions share no public base
        line = first_line(error)
        raise InputRejectedError(f"ONNX Runtime cannot run the networks: {line}") from None


def _for_all_runs(limits: LoadLimits, settings: LatencySettings) -> LoadLimits:
    """Return the limits of the whole measurement: each run by itself passed ``limits``."""
    pairs = 1 + FEWEST_RUNS  # which are made even when the time is over
    seconds = 2 * pairs * limits.cpu_seconds * settings.batch
    seconds += math.ceil(settings.threads * settings.time_budget_s)
    memory = limits.memory_bytes * settings.batch + THREAD_BYTES * (settings.threads - 1)
    return replace(limits, cpu_seconds=min(seconds, 10**6), memory_bytes=min(memory, 2**44))
