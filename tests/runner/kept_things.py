"""An ear for what a cache tells, and a network to keep."""

from __future__ import annotations

import torch
from small_checkpoint import spec
from torch import nn

from edgeclean.networks.state import LoadedNetwork


class Ear:
    """Hears what the cache tells."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, line: str) -> None:
        self.heard.append(line)


def small_network(kind: type = LoadedNetwork, width: int = 3) -> LoadedNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        module = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(2))
    return kind(module=module.eval(), spec=spec(), source_sha256="ab" * 32)  # type: ignore[no-any-return]
