"""What every stage of a run has in common: it is timed, told of, and taken up where it was done.

A stage is a name, a function, and what the function is called with. The key of a kept result is a
hash of all of these (`resume.keys`), and the runner itself makes the call, with exactly what it
hashed. A function that could know more, such as a closure over settings, is refused.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

from edgeclean.finite import require_finite
from edgeclean.progress import Progress, silent
from edgeclean.resume.keys import stage_key
from edgeclean.resume.store import Store, Tell
from edgeclean.resume.values import from_bytes, to_bytes
from edgeclean.states import Network

P = ParamSpec("P")
T = TypeVar("T")
# Of stages that do not tell how far they are themselves.
TITLES = {
    "load": "Loading",
    "export": "Exporting",
    "parity": "Checking parity",
    "precision": "Lowering the precision",
    "latency": "Measuring latency",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Where the results of stages are kept from one run to the next.

    Attributes:
        folder: made when the first stage ends, for its owner only; see `Store`.
        tell: told, in a line each, of stages that were not run, and of results that could not be
            kept or used.
    """

    folder: Path
    tell: Tell

    @property
    def store(self) -> Store:
        """The results by key."""
        return Store(self.folder, self.tell)


class Runner:
    """Runs the stages of one run.

    Attributes:
        seconds: wall time by stage, in the order in which the stages first ended.
    """

    def __init__(self, cache: Cache | None = None, progress: Progress = silent) -> None:
        """Nothing is read or written yet.

        Args:
            cache: where results are kept and taken from; None to keep none.
            progress: told of every stage; given to those that take one.
        """
        self.seconds: dict[str, float] = {}
        self._cache, self._progress = cache, progress

    def __call__(self, name: str, stage: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The stage's result; two calls under one name add up their time.

        Args:
            name: what the report calls it.
            stage: a function.
            *args: what it is called with.
            **kwargs: the same; ``progress`` is the runner's where the function takes one.
        """
        with self._timed(name):
            return self._made(name, stage, self._given(stage, args, kwargs))

    def once(self, name: str, stage: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As a call; but a result that is kept under all that decides it is taken up instead.

        Raises:
            TypeError: the stage is a closure or no plain function, or is given something that has
                no digest.
        """
        _refuse_hidden(stage)
        if self._cache is None:
            return self(name, stage, *args, **kwargs)
        given = self._given(stage, args, kwargs)
        values = {key: one for key, one in given.arguments.items() if key != "progress"}
        with self._timed(name):
            key, store = stage_key(name, values), self._cache.store
            stored = store.get(key)
            if stored is not None:
                try:
                    taken: T = from_bytes(stored, _first_network(values))
                except (ValueError, KeyError, TypeError, RuntimeError) as error:
                    self._cache.tell(f"cache: what is kept of {name} cannot be used ({error})")
                else:
                    self._cache.tell(f"{name}: taken up from an earlier run")
                    return taken
            made = self._made(name, stage, given)
            store.put(key, to_bytes(made))
            return made

    def _made(self, name: str, stage: Callable[..., T], given: inspect.BoundArguments) -> T:
        """What the stage returns, which is finite: every new result comes by here.

        Raises:
            NotFiniteError: it is not; see `finite`.
        """
        result = stage(*given.args, **given.kwargs)
        require_finite(result, name)
        return result

    def _given(
        self, stage: Callable[..., object], listed: tuple[Any, ...], named: dict[str, Any]
    ) -> inspect.BoundArguments:
        """All that the stage is called with, defaults included."""
        signature = inspect.signature(stage)
        if "progress" in signature.parameters:
            named = {"progress": self._progress, **named}
        given = signature.bind(*listed, **named)
        given.apply_defaults()
        return given

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        title = TITLES.get(name)
        if title:
            self._progress(title, 0, 1)
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed, 3)
            if title:
                self._progress(title, 1, 1)


def peak_memory_mib() -> float | None:
    """The most memory this process has held; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _refuse_hidden(stage: Callable[..., object]) -> None:
    """Only a plain function without a closure knows nothing but what it is given."""
    function = inspect.unwrap(stage)
    if not isinstance(function, FunctionType) or function.__closure__ is not None:
        raise TypeError(
            f"{stage!r} may know more than it is given; a stage that is kept is a function of a "
            "module, with all that decides its result among its arguments"
        )


def _first_network(values: dict[str, Any]) -> Network | None:
    """A network of a result's layers: a stage that returns one changes its first."""
    return next((one for one in values.values() if isinstance(one, Network)), None)
