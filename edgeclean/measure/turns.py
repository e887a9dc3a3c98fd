"""Run two loaded networks in turns, and time each run.

Whatever else the machine does, it does to both. Nothing here knows a runtime: the process that a
runtime is confined in imports this and little else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgeclean.child.parcel import Parcel, untrusted_answer
from edgeclean.errors import EdgecleanError, UsageError

BLOCK_PAIRS = 5  # a warm-up block; its median is what must settle
SETTLED_WITHIN = 0.03
FEWEST_RUNS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How many runs are made, of what, and for how long.

    Attributes:
        runs: measured runs of each network.
        warmup_runs: the most runs of each network before measuring; fewer when both have settled.
        batch: images in one run.
        time_budget_s: seconds after which warm-up and measurement end with however many runs were
            made (but at least 5 of each).
        seed: seed of the random images.
    """

    runs: int
    warmup_runs: int
    batch: int
    time_budget_s: float
    seed: int


@runtime_checkable
class Sized(Protocol):
    """A network of which it is known what it takes."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        ...

    @property
    def batch(self) -> int | None:
        """Images per run, or None where any number will do."""
        ...


@runtime_checkable
class Loaded(Sized, Protocol):
    """A network that a runtime has loaded, as `OnnxSession` and the engines of others are."""

    def run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits [n, classes] of exactly one batch [n, c, h, w]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTimes:
    """The runs of two networks that took turns.

    Attributes:
        latencies_ms: [runs, 2], the original's and the compressed network's, in milliseconds.
        input_shape: channels, height and width of one image.
        warmup_runs: runs of each network before the first one counted.
        settled: whether both medians had stopped moving when measuring began.
    """

    latencies_ms: NDArray[np.float64]
    input_shape: tuple[int, int, int]
    warmup_runs: int
    settled: bool

    def packed(self) -> Parcel:
        """Return the times as a child process answers them."""
        facts = {
            "input_shape": list(self.input_shape),
            "warmup_runs": self.warmup_runs,
            "settled": self.settled,
        }
        return Parcel(facts=facts, files={"latencies_ms": self.latencies_ms.tobytes()})


def times_told(answer: Parcel, turns: Turns, refusal: EdgecleanError) -> PairTimes:
    """Return the times that a child process packed, or whoever took it over.

    Args:
        answer: what it says.
        turns: what it was asked.
        refusal: raised where the answer is not of that form.
    """
    facts = answer.facts
    with untrusted_answer(refusal):
        channels, height, width = map(int, facts["input_shape"])
        warmup_runs, settled = int(facts["warmup_runs"]), bool(facts["settled"])
        latencies = np.frombuffer(answer.files["latencies_ms"], np.float64).reshape(-1, 2)
        whole = 1 <= len(latencies) <= turns.runs and 0 <= warmup_runs <= turns.warmup_runs
        if not whole or not (np.isfinite(latencies) & (latencies > 0)).all():
            raise ValueError(latencies.shape)
    return PairTimes(
        latencies_ms=latencies,
        input_shape=(channels, height, width),
        warmup_runs=warmup_runs,
        settled=settled,
    )


def time_loaded(sessions: tuple[Loaded, Loaded], settings: Turns) -> PairTimes:
    """Run two loaded networks in turns, whichever runtime it is that has loaded them.

    Raises:
        UsageError: the two differ in input shape, or a fixed batch is not the one in ``settings``.
    """
    check_comparable(sessions[0], sessions[1], settings.batch)
    generator = np.random.default_rng(settings.seed)
    images = generator.standard_normal((settings.batch, *sessions[0].input_shape), dtype=np.float32)
    deadline = time.perf_counter() + settings.time_budget_s
    warmup_runs, settled = _warm_up(sessions, images, settings, deadline)
    latencies = _measure(sessions, images, settings.runs, deadline, fewest=FEWEST_RUNS)
    return PairTimes(
        latencies_ms=latencies,
        input_shape=sessions[0].input_shape,
        warmup_runs=warmup_runs,
        settled=settled,
    )


def check_comparable(original: Sized, compressed: Sized, batch: int) -> None:
    """Refuse two networks that cannot be measured on the same images.

    Raises:
        UsageError: the two differ in input shape, or a fixed batch is not ``batch``.
    """
    if original.input_shape != compressed.input_shape:
        raise UsageError(
            f"the original takes images {original.input_shape} and the compressed network "
            f"{compressed.input_shape}; only networks of one input shape can be compared"
        )
    for name, network in (("original", original), ("compressed network", compressed)):
        if network.batch not in (None, batch):
            raise UsageError(
                f"batch {batch} was asked, and the {name} is fixed to batch {network.batch}; "
                f"measure at batch {network.batch}, or export it with an open batch"
            )


def _warm_up(
    sessions: tuple[Loaded, ...],
    images: NDArray[np.float32],
    settings: Turns,
    deadline: float,
) -> tuple[int, bool]:
    """Run until neither median moves any more; return the runs of each and whether they settled.

    At most a quarter of the time budget is spent on it.
    """
    last_start = deadline - 0.75 * settings.time_budget_s
    medians: list[NDArray[np.float64]] = []
    runs = 0
    while runs < settings.warmup_runs:
        block = min(BLOCK_PAIRS, settings.warmup_runs - runs)
        latencies = _measure(sessions, images, block, last_start, fewest=1)
        runs += len(latencies)
        medians.append(np.median(latencies, axis=0))
        if len(medians) >= 3:
            moved = np.abs(medians[-1] / medians[-2] - 1).max()
            if moved <= SETTLED_WITHIN:
                return runs, True
        if time.perf_counter() >= last_start:
            break
    return runs, False


def _measure(
    sessions: tuple[Loaded, ...],
    images: NDArray[np.float32],
    runs: int,
    deadline: float,
    *,
    fewest: int,
) -> NDArray[np.float64]:
    """Return latencies [runs, 2] in milliseconds, of fewer runs if the deadline passes.

    At least ``fewest`` are made. The first of each pair alternates, for the second one finds warmer
    clocks and colder caches.
    """
    latencies = np.empty((runs, 2))
    for row in range(runs):
        if row >= fewest and time.perf_counter() >= deadline:
            return latencies[:row]
        for column in (0, 1) if row % 2 == 0 else (1, 0):
            start = time.perf_counter_ns()
            sessions[column].run(images)
            latencies[row, column] = (time.perf_counter_ns() - start) / 1e6
    return latencies
