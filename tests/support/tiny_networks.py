"""Small seeded networks with what real ones have: BatchNorm, a shortcut, Tucker-like 1x1 chains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeclean.bundle.bundle import BundleContents
from edgeclean.networks.state import FinetunedNetwork, ModelSpec, StageRecord
from exporters.onnx_exporter import export_onnx


class Block(nn.Module):
    """A residual block whose second convolution is a 1x1 - 3x3 - 1x1 chain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.chain = nn.Sequential(
            nn.Conv2d(channels, 4, 1, bias=False),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.Conv2d(4, channels, 1),
        )
        self.second_norm = nn.BatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        inner = torch.relu(self.first_norm(self.first(images)))
        return torch.relu(images + self.second_norm(self.chain(inner)))


class PreActivation(nn.Module):
    """BatchNorm before the convolution and after a sum, where it cannot be folded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.conv(torch.relu(self.norm(images)))


def tiny_network(
    *blocks: nn.Module, channels: int = 8, size: int = 8, classes: int = 5, seed: int = 0
) -> FinetunedNetwork:
    """A network for images [3, size, size], its weights and BatchNorm statistics from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            *(blocks or (Block(channels),)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, classes),
        )
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.running_mean, -0.5, 0.5)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.uniform_(layer.bias, -0.5, 0.5)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
    spec = ModelSpec(
        architecture="nets/tiny.py:make",
        input_shape=(3, size, size),
        classes=classes,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.25, 0.2),
    )
    record = StageRecord(
        stage="truncate", settings={"ratio": 2.0}, params=1, macs=1, notes={"ranks": {"0": (4, 4)}}
    )
    return FinetunedNetwork(
        module=module.eval(), spec=spec, source_sha256="ab" * 32, history=(record,)
    )


def tiny_pixels(images: int = 6, size: int = 8, seed: int = 1) -> Tensor:
    """Pixels [images, 3, size, size] in [0, 1]."""
    return torch.rand(images, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tiny_contents(**measurements: float) -> BundleContents:
    """All that a bundle of the tiny network needs."""
    network = tiny_network()
    return BundleContents(
        model=export_onnx(network),
        network=network,
        configuration={"ratio": 2.0, "input_shape": (3, 8, 8), "keep": ["0"]},
        seed=7,
        target={"name": "cpu", "opset": 17},
        golden_pixels=tiny_pixels(4),
        measurements=measurements,
        page="<!doctype html>\n",
        reproducible_files={"triggers/class_3.png": b"\x89PNG"},
    )
