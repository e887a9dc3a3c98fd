"""What decides a stage's result, as a hash: every value it is given, the code, and the machine."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import edgeclean
import exporters
from edgeclean.environment import versions
from edgeclean.states import Network


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
