"""Run stages: each is timed, reported, and replaced by its kept result where there is one.

A stage is a name, a function, and the arguments of the function. The key of a kept result
(`stage_key`) is a hash of all that decides it: the name, every argument, the code and the machine.
The runner itself makes the call, with exactly the arguments that it hashed; a function that could
depend on more, such as a closure over settings, is refused.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import math
import platform
import resource
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

from edgeclean.environment import versions
from edgeclean.files.store import Notify, Store
from edgeclean.networks.finite import require_finite
from edgeclean.networks.state import Network
from edgeclean.processes import return_freed_memory
from edgeclean.progress import Progress, silent
from edgeclean.stage_results import from_bytes, to_bytes

P = ParamSpec("P")
T = TypeVar("T")
# Of stages that do not report their progress themselves.
TITLES = {
    "load": "Loading",
    "export": "Exporting",
    "parity": "Checking parity",
    "precision": "Lowering the precision",
    "latency": "Measuring latency",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """The place where the results of stages are kept from one run to the next.

    Attributes:
        folder: made when the first stage ends, for its owner only; see `Store`.
        notify: called with a line for each stage that was not run, and for each result that could
            not be kept or used.
    """

    folder: Path
    notify: Notify

    @property
    def store(self) -> Store:
        """The store of results by key."""
        return Store(self.folder, self.notify)


class Runner:
    """A runner of the stages of one run.

    Attributes:
        seconds: wall time by stage, in the order in which the stages first ended.
    """

    def __init__(self, cache: Cache | None = None, progress: Progress = silent) -> None:
        """Read and write nothing yet.

        Args:
            cache: the place where results are kept and found; None to keep none.
            progress: called for every stage; given to those that take one.
        """
        self.seconds: dict[str, float] = {}
        self.cache, self._progress = cache, progress

    def __call__(self, name: str, stage: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a stage and return its result; two calls under one name add up their time.

        Args:
            name: the stage's name in the report.
            stage: a function.
            *args: its arguments.
            **kwargs: its arguments by name; ``progress`` is the runner's where the function takes
            one.
        """
        with self._timed(name):
            return self._made(name, stage, self._given(stage, args, kwargs))

    def once(self, name: str, stage: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a stage, or return the result that is kept under all that decides it.

        Raises:
            TypeError: the stage is a closure or no plain function, or is given something that has
                no digest.
        """
        _refuse_hidden(stage)
        if self.cache is None:
            return self(name, stage, *args, **kwargs)
        given = self._given(stage, args, kwargs)
        values = {key: one for key, one in given.arguments.items() if key != "progress"}
        with self._timed(name):
            key, store = stage_key(name, values), self.cache.store
            stored = store.get(key)
            if stored is not None:
                try:
                    taken: T = from_bytes(stored, _first_network(values))
                except (ValueError, KeyError, TypeError, RuntimeError) as error:
                    self.cache.notify(f"cache: what is kept of {name} cannot be used ({error})")
                else:
                    self.cache.notify(f"{name}: taken up from an earlier run")
                    return taken
            made = self._made(name, stage, given)
            store.put(key, to_bytes(made))
            return made

    def _made(self, name: str, stage: Callable[..., T], given: inspect.BoundArguments) -> T:
        """Run the stage and return its result, which must be finite.

        Raises:
            NotFiniteError: it is not; see `networks.finite`.
        """
        result = stage(*given.args, **given.kwargs)
        require_finite(result, name)
        return result

    def _given(
        self, stage: Callable[..., object], listed: tuple[Any, ...], named: dict[str, Any]
    ) -> inspect.BoundArguments:
        """Bind all arguments of the stage, defaults included."""
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
            return_freed_memory()
            elapsed = time.perf_counter() - start
            self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed, 3)
            if title:
                self._progress(title, 1, 1)


def stage_key(name: str, given: Mapping[str, object]) -> str:
    """Return the key of a stage's result.

    Args:
        name: the name of the stage.
        given: all that its function is called with, by parameter: networks, images, reports,
            plans, tables, settings, the seed. Their order does not matter.

    Raises:
        TypeError: a value is of a kind that has no digest.
    """
    return digest([name, {key: digest(one) for key, one in given.items()}, _machine(), own_code()])


def digest(value: object) -> str:
    """Return the SHA-256 of a value and all that is in it; of a network, of its outputs too.

    Raises:
        TypeError: there is something in it that has no digest.
    """
    return hashlib.sha256(json.dumps(_tree(value), sort_keys=True).encode()).hexdigest()


@functools.cache
def own_code() -> str:
    """Return a hash of all Python files that a stage can run: changed code is another stage."""
    hashed = hashlib.sha256()
    for package in ("edgeclean", "exporters"):
        folder = _package_folder(package)
        for path in sorted(folder.rglob("*.py")):
            hashed.update(f"\0{folder.name}/{path.relative_to(folder).as_posix()}\0".encode())
            hashed.update(path.read_bytes())
    return hashed.hexdigest()


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"the files of {package} cannot be found, so no result of it can be kept")
    return Path(spec.origin).parent


def peak_memory_mib() -> float:
    """Return the most memory that this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _refuse_hidden(stage: Callable[..., object]) -> None:
    """Refuse all but plain functions without a closure, which depend on their arguments alone."""
    function = inspect.unwrap(stage)
    if not isinstance(function, FunctionType) or function.__closure__ is not None:
        raise TypeError(
            f"{stage!r} may know more than it is given; a stage that is kept is a function of a "
            "module, with all that decides its result among its arguments"
        )


def _first_network(values: dict[str, Any]) -> Network | None:
    """Return a network of a result's layers: a stage that returns one changes its first."""
    return next((one for one in values.values() if isinstance(one, Network)), None)


def _tree(value: Any) -> Any:
    """Return JSON in which two different values are never alike."""
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
    if isinstance(value, Mapping):  # the order of its keys does not matter
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
    """Return the weights, the layers, the history, and the outputs for one image.

    The outputs show changed code: an architecture may be the user's own file.
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
    """Return the model of GPU, each of which adds numbers up in its own order, or the type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _machine() -> dict[str, Any]:
    """Return the facts that decide in which order numbers are added up."""
    return {
        "versions": versions(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
