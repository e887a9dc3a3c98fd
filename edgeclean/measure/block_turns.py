"""The forms of a layer in turns, in this process or in the one that a runtime is confined in.

As in `exporters.engines`, neither torch nor onnx is loaded here.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError
from exporters.engines.tasks import Engine, engine_named

FEWEST_ROUNDS = 5
TRIES = 8

Run = Callable[[], float]


def take_rounds(runs: Sequence[Run], rounds: int, seconds: float) -> NDArray[np.float64]:
    """Return milliseconds [rounds, runs], after a warm-up.

    Each round starts with another run than the one before.

    Args:
        runs: each runs one form once and returns milliseconds.
        rounds: the most rounds.
        seconds: after which no round begins, once 5 were made.
    """
    for run in runs:
        run()
    deadline = time.perf_counter() + seconds
    latencies = np.empty((rounds, len(runs)))
    for row in range(rounds):
        if row >= FEWEST_ROUNDS and time.perf_counter() >= deadline:
            return latencies[:row]
        for place in range(len(runs)):
            column = (place + row) % len(runs)
            latencies[row, column] = runs[column]()
    return latencies


def rounds_task(given: Parcel) -> Parcel:
    """Convert networks for a runtime, load them and run them in turns; for a confined process.

    `edgeclean.measure.block_backends` asks for it. Each network is converted where it is run:
    hundreds of forms would otherwise take hundreds of processes.

    Raises:
        InputRejectedError: the runtime does not take one of them.
        ToolchainError: the runtime or its converter is not installed.
    """
    facts = given.facts
    engine = engine_named(facts["engine"])
    runs = []
    for number, shape in enumerate(facts["shapes"]):
        folder = Path(f"form{number}")
        folder.mkdir()
        engine.write(given.files[f"{number}.onnx"], facts["precision"], shape, folder)
        missing = [name for name in facts["files"] if not (folder / name).is_file()]
        if missing:
            raise InputRejectedError(f"the converter wrote no {missing[0]}")
        loaded = engine(folder, facts["precision"], facts["threads"])
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        runs.append(_timed(loaded, images))
    latencies = take_rounds(runs, facts["rounds"], facts["seconds"])
    return Parcel(files={"latencies_ms": latencies.tobytes()})


def _timed(engine: Engine, images: NDArray[np.float32]) -> Run:
    return lambda: undisturbed_milliseconds(lambda: engine.run(images))


def undisturbed_milliseconds(run: Callable[[], object]) -> float:
    """Return the milliseconds of a run in which no thread of this process was preempted.

    It is the wall time of the first such run of at most eight; if every run was preempted, the
    shortest one counts. The processor's time of one thread would miss what a runtime computes in a
    thread of its own, and that of the whole process ticks too coarsely for a layer.
    """
    shortest = float("inf")
    for _ in range(TRIES):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        start = time.perf_counter_ns()
        run()
        ms = (time.perf_counter_ns() - start) / 1e6
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before:
            return ms
        shortest = min(shortest, ms)
    return shortest
