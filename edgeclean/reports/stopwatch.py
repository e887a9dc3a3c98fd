"""How long each stage of a run took, and the most memory that the run held."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from edgeclean.progress import Progress, silent

P = ParamSpec("P")
T = TypeVar("T")

STAGE_NAMES = {
    "load_checkpoint": "load",
    "choose_ranks": "ranks",
    "export_onnx": "export",
    "check_parity": "parity",
    "lower_precision": "precision",
    "measure_pair": "latency",
    "measured_table": "latency table",
}


class Stopwatch:
    """Wraps functions so that their wall time adds up under their stage's name.

    Attributes:
        seconds: by stage, in the order in which the stages first ended.
    """

    def __init__(self, progress: Progress = silent) -> None:
        """Tell ``progress`` of the stages that are given a title."""
        self.seconds: dict[str, float] = {}
        self._progress = progress

    def __call__(self, stage: Callable[P, T], title: str = "") -> Callable[P, T]:
        """The same function; a second call adds to the first one's time.

        Args:
            stage: to wrap.
            title: for stages that do not report their progress themselves.
        """
        name = STAGE_NAMES.get(stage.__name__, stage.__name__)

        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            if title:
                self._progress(title, 0, 1)
            start = time.perf_counter()
            try:
                return stage(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed, 3)
                if title:
                    self._progress(title, 1, 1)

        return timed


def peak_memory_mib() -> float | None:
    """The most memory this process has held; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
