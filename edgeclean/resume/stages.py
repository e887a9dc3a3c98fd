"""Stages whose results are kept: by a hash of the network, the settings and all that came before.

The key of a stage covers the network as it was loaded (its weights, its layers, and its answers to
one fixed image, which tell of changed code), the seed, edgeclean's own code, the versions of the
libraries, the processor and its threads, and the settings of every stage up to this one. Where one
of these differs, there is nothing under the new key, and the stage runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import torch

import edgeclean
from edgeclean.environment import versions
from edgeclean.resume.store import Store, Tell
from edgeclean.resume.values import from_bytes, to_bytes
from edgeclean.states import Network, settings_as_json

P = ParamSpec("P")
T = TypeVar("T")


@runtime_checkable
class Kept(Protocol):
    """What the pipeline asks of either of the two below."""

    def __call__(
        self, stage: Callable[P, T], *settings: object, like: Network | None = None
    ) -> Callable[P, T]:
        """The stage itself, or what gives its kept result; called in the order of the stages.

        Args:
            stage: a function whose result is decided by the network, the seed and the settings.
            settings: all that decide the result and no earlier stage was given.
            like: a network with the layers of the result, where that is a network.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Where finished stages are kept.

    Attributes:
        folder: made when the first stage ends, for its owner only; see `Store`.
        tell: told, in a line each, of stages that were not run, and of results that could not be
            kept or used.
    """

    folder: Path
    tell: Tell

    @property
    def store(self) -> Store:
        """For what is kept of this machine and not of one run."""
        return Store(self.folder, self.tell)

    def of(self, original: Network, seed: int) -> KeptStages:
        """The stages of one run on this network."""
        return KeptStages(self.folder, original, seed, self.tell)


def keep_nothing(
    stage: Callable[P, T], *settings: object, like: Network | None = None
) -> Callable[P, T]:
    """Every stage runs."""
    return stage


class KeptStages:
    """The stages of one run."""

    def __init__(self, folder: Path, original: Network, seed: int, tell: Tell) -> None:
        """Nothing is read or written yet.

        Args:
            folder: see `Store`.
            original: as it was loaded.
            seed: of the whole run.
            tell: told of stages that were not run, and of results that could not be used.
        """
        self._store = Store(folder, tell)
        self._tell = tell
        self._key = _digest("run", _fingerprint(original), seed, _machine(), _own_code())

    def __call__(
        self, stage: Callable[P, T], *settings: object, like: Network | None = None
    ) -> Callable[P, T]:
        """See `Kept`."""
        name = stage.__name__
        self._key = key = _digest(self._key, name, [settings_as_json(one) for one in settings])

        @functools.wraps(stage)
        def kept(*args: P.args, **kwargs: P.kwargs) -> T:
            stored = self._store.get(key)
            if stored is not None:
                try:
                    result: T = from_bytes(stored, like)
                except (ValueError, KeyError, TypeError, RuntimeError) as error:
                    self._tell(f"cache: what is kept of {name} cannot be used ({error})")
                else:
                    self._tell(f"{name}: taken up from an earlier run")
                    return result
            made = stage(*args, **kwargs)
            self._store.put(key, to_bytes(made))
            return made

        return kept


def _fingerprint(network: Network) -> str:
    """The weights, the layers, and what they make of one image."""
    shape, device = network.spec.input_shape, next(network.module.parameters()).device
    digest = hashlib.sha256(f"{device.type}\0{network.module!r}".encode())
    image = torch.linspace(-1, 1, math.prod(shape), device=device).view(1, *shape)
    with torch.no_grad():
        logits = network.module(image)
    for name, tensor in [*network.module.state_dict().items(), ("", logits)]:
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return _digest(
        digest.hexdigest(),
        network.source_sha256,
        asdict(network.spec),
        [asdict(one) for one in network.history],
    )


def _machine() -> dict[str, Any]:
    """What decides in which order numbers are added up."""
    return {
        "versions": versions(),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def _own_code() -> str:
    """A hash of edgeclean's own files: another version of a stage is another stage."""
    folder = Path(edgeclean.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"\0{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
