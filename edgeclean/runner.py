"""What every stage of a run has in common: it is timed, told of, and taken up where it was done.

A stage is a name, a function, and what the function is called with. The key of a kept result is a
hash of what decides it (`stage_key`): every value it is given, the code, and the machine. The
runner itself makes the call, with exactly what it hashed; a function that could know more, such as
a closure over settings, is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

import edgeclean
import exporters
from edgeclean.environment import versions
from edgeclean.files.store import Store, Tell
from edgeclean.networks.finite import require_finite
from edgeclean.networks.state import Network
from edgeclean.progress import Progress, silent
from edgeclean.stage_results import from_bytes, to_bytes

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


def stage_key(name: str, given: Mapping[str, object]) -> str:
    """The key of a stage's result.

    Args:
        name: of the stage.
        given: all that its function is called with, by parameter: networks, images, reports,
            plans, tables, settings, the seed. Their order does not matter.

    Raises:
        TypeError: a value is of a kind that has no digest.
    """
    return digest([name, {key: digest(one) for key, one in given.items()}, _machine(), own_code()])


def digest(value: object) -> str:
    """The SHA-256 of a value and all that is in it; of a network, of what it computes too.

    Raises:
        TypeError: there is something in it that has no digest.
    """
    return hashlib.sha256(json.dumps(_tree(value), sort_keys=True).encode()).hexdigest()


@functools.cache
def own_code() -> str:
    """A hash of all Python files that a stage can run: another version of it is another stage."""
    hashed = hashlib.sha256()
    for package in (edgeclean, exporters):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            hashed.update(f"\0{folder.name}/{path.relative_to(folder).as_posix()}\0".encode())
            hashed.update(path.read_bytes())
    return hashed.hexdigest()


def _tree(value: Any) -> Any:
    """JSON in which two different values are never alike."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Tensor):
        return {"tensor": _tensor(value)}
    if isinstance(value, Network):
        return {"network": _network(value)}
    if isinstance(value, tuple | list):
        return [_tree(one) for one in value]
    if isinstance(value, Mapping):  # the order of its keys says nothing
        return {"mapping": sorted([digest(key), _tree(one)] for key, one in value.items())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: _tree(getattr(value, one.name)) for one in dataclasses.fields(value)}
        return {"class": f"{type(value).__module__}.{type(value).__qualname__}", "fields": fields}
    raise TypeError(f"a {type(value).__name__} has no digest, so no stage may be given one")


def _tensor(tensor: Tensor) -> list[Any]:
    numbers: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    kind = [str(tensor.dtype), list(tensor.shape), list(tensor.stride()), _device(tensor.device)]
    return [*kind, hashlib.sha256(numbers).hexdigest()]


def _network(network: Network) -> dict[str, Any]:
    """The weights, the layers, the history, and an answer to one image.

    The answer tells of changed code: an architecture may be the user's own file.
    """
    module, shape = network.module, network.spec.input_shape
    device = next(module.parameters()).device
    image = torch.linspace(-1, 1, math.prod(shape), device=device).view(1, *shape)
    with torch.no_grad():
        answer = module(image)
    fields = {one.name: getattr(network, one.name) for one in dataclasses.fields(network)}
    fields["module"] = [
        repr(module),
        module.training,
        [[name, tensor] for name, tensor in module.state_dict().items()],
        answer,
    ]
    return {name: _tree(one) for name, one in fields.items()} | {"kind": type(network).__name__}


def _device(device: torch.device) -> str:
    """Another model of GPU adds numbers up in another order."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _machine() -> dict[str, Any]:
    """What decides in which order numbers are added up."""
    return {
        "versions": versions(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
