"""Keep the suites' attacked networks in files, with kernels in half precision and their training.

A network in ``zoo/SUITE/seed-S/ATTACK.safetensors`` is committed and used in place of a training.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeclean.networks.state import JsonValue, LoadedNetwork

KEPT = Path(__file__).parents[1] / "zoo"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNetwork:
    """A network as read from its file.

    Attributes:
        network: the network in evaluation mode.
        weights_sha256: SHA-256 of the file's tensors (the attack's own networks with them).
        training: seconds and loss of every epoch, and the environment of the training.
    """

    network: LoadedNetwork
    weights_sha256: str
    training: dict[str, JsonValue]


def write_network(
    path: Path, modules: nn.Module, made_with: dict[str, JsonValue], training: dict[str, object]
) -> None:
    """Write the file whole or not at all; ``made_with`` are the settings it depends on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: _stored(tensor) for name, tensor in modules.state_dict().items()}
    partial = path.with_suffix(".partial")
    facts = {"made_with": json.dumps(made_with), "training": json.dumps(training)}
    save_file(tensors, partial, metadata=facts)
    partial.replace(path)


def read_network(
    path: Path, modules: nn.Module, made_with: dict[str, JsonValue]
) -> tuple[str, dict[str, JsonValue]]:
    """Load into ``modules``; return the tensors' digest and the record of the training.

    Raises:
        ValueError: the network was made with other settings.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        facts = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    if facts.get("made_with") != made_with:
        raise ValueError(f"{path} was trained with other settings; remove it or give --fresh")
    modules.load_state_dict(tensors)
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest(), facts["training"]


def _stored(tensor: Tensor) -> Tensor:
    """Return kernels and matrices in half precision; scales, shifts and statistics as they are."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.half() if tensor.ndim > 1 and tensor.is_floating_point() else tensor
