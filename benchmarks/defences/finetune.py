"""Fine-tune on a few clean images: the plainest defence, and NAD's teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.data.images import LabelledImages
from benchmarks.defences.base import (
    batches,
    copied,
    cross_entropy,
    defended,
    need_images,
)
from edgeclean.errors import UsageError
from edgeclean.networks.state import Network, PurifiedNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """Settings of SGD with Nesterov momentum at one learning rate, crops and flips."""

    epochs: int = 10
    batch: int = 64
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise UsageError(f"epochs is {self.epochs}; it must not be negative")


def finetune_clean(
    network: Network,
    clean: LabelledImages,
    seed: int = 0,
    settings: FinetuneSettings | None = None,
) -> PurifiedNetwork:
    """Train all weights further on the clean images."""
    settings = settings or FinetuneSettings()
    need_images(clean, "fine-tuning")
    module = copied(network)
    fit(module, network, clean, seed, settings)
    return defended(network, module, "fine-tuning", settings, {"images": len(clean)})


def fit(
    module: nn.Module,
    network: Network,
    clean: LabelledImages,
    seed: int,
    settings: FinetuneSettings,
) -> None:
    """Train ``module`` in place; ``network`` gives the input scaling."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.SGD(
        module.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    module.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout has no other source
        for _ in range(settings.epochs):
            for images, labels in batches(
                clean,
                network,
                size=settings.batch,
                padding=settings.padding,
                flip=settings.flip,
                generator=generator,
            ):
                optimiser.zero_grad()
                cross_entropy(module(images), labels).backward()
                optimiser.step()
    module.eval()
