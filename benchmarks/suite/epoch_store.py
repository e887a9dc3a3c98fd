"""Keep the state of a training after its last whole epoch, so that an interrupted one goes on."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.attacks.base import Attack
from edgeclean.networks.state import JsonValue, settings_as_json

NETWORK, MOMENTUM, ATTACK = "network.", "momentum.", "attack."
Epochs = list[dict[str, float]]


class EpochStore:
    """A safetensors file (no pickle to trust) with a log beside it; without a folder, nothing."""

    def __init__(self, folder: Path | None, settings: object, attack: Attack, images: int) -> None:
        self._path = None if folder is None else folder / "epoch.safetensors"
        self._attack = attack
        identity = {
            "settings": settings_as_json(settings),
            "attack": attack.facts(),
            "images": images,
        }
        self._identity: dict[str, JsonValue] = json.loads(json.dumps(identity))

    def save(self, network: nn.Module, optimiser: torch.optim.Optimizer, epochs: Epochs) -> None:
        """Keep the network, its momenta and the attack's own state."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {NETWORK + name: tensor for name, tensor in network.state_dict().items()}
        for name, parameter in network.named_parameters():
            momentum = optimiser.state[parameter].get("momentum_buffer")
            if momentum is not None:  # before the first step there is none
                tensors[MOMENTUM + name] = momentum
        tensors |= {ATTACK + name: tensor for name, tensor in self._attack.state().items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = json.dumps({**self._identity, "epochs": epochs})
        partial = self._path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"training": metadata})
        partial.replace(self._path)

    def load(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
    ) -> Epochs | None:
        """Restore everything after the last epoch, and return the epochs done; None for no state.

        Raises:
            ValueError: the folder holds a training with other settings.
        """
        if self._path is None or not self._path.exists():
            return None
        with safe_open(self._path, "pt") as file:
            log = json.loads(file.metadata()["training"])
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        if {name: log[name] for name in self._identity} != self._identity:
            raise ValueError(
                f"{self._path.parent} holds a training with other settings; "
                f"remove that folder or give another one"
            )
        network.load_state_dict(_under(NETWORK, tensors))
        for name, momentum in _under(MOMENTUM, tensors).items():
            parameter = network.get_parameter(name)
            optimiser.state[parameter]["momentum_buffer"] = momentum.to(parameter.device)
        self._attack.resume(_under(ATTACK, tensors), device)
        epochs: Epochs = log["epochs"]
        return epochs


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names start so, without that start."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
