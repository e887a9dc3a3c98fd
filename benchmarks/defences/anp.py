"""ANP prunes channels that a small adversarial change of weights turns against the images.

Source: Wu and Wang (2021), "Adversarial neuron pruning purifies backdoored deep models". A mask
per BatchNorm scale is learned on clean images; scales times (mask + noise), shifts times
(1 + noise). The threshold is the paper's fixed one: the public benchmark's choice of the threshold
by test ASR is an oracle that no user has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.data.images import LabelledImages
from benchmarks.defences.base import (
    batches,
    copied,
    cross_entropy,
    defended,
    need_batch_norms,
    need_images,
)
from edgeclean.errors import UsageError
from edgeclean.networks.state import Network, PurifiedNetwork

Noise = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnpSettings:
    """Settings of ANP; the defaults are the paper's.

    Attributes:
        steps: steps of the masks.
        batch: images a step.
        learning_rate: learning rate of the masks (SGD).
        momentum: momentum of the masks (SGD).
        budget: the noise lies in [-budget, budget].
        noise_steps: sign-ascent steps on the noise for each step of the masks.
        alpha: weight of the loss without noise; the rest is the loss with it.
        threshold: channels whose mask ends below it are pruned.
        padding: of the random crops.
        flip: mirror half of the images.
    """

    steps: int = 2000
    batch: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    budget: float = 0.4
    noise_steps: int = 1
    alpha: float = 0.2
    threshold: float = 0.2
    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("alpha", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must lie in 0..1")


def anp(
    network: Network,
    clean: LabelledImages,
    seed: int = 0,
    settings: AnpSettings | None = None,
) -> PurifiedNetwork:
    """Learn the masks on a copy, then prune the original's channels below the threshold."""
    settings = settings or AnpSettings()
    need_images(clean, "ANP")
    masks = learn_masks(network, clean, seed, settings)
    module = copied(network)
    norms = need_batch_norms(module, "ANP")
    pruned: dict[str, list[int]] = {}
    for name, mask in masks.items():
        low = mask < settings.threshold
        pruned[name] = low.nonzero().flatten().tolist()
        with torch.no_grad():
            norms[name].weight[low] = 0
    return defended(network, module, "anp", settings, {"pruned": pruned, "images": len(clean)})


def learn_masks(
    network: Network, clean: LabelledImages, seed: int, settings: AnpSettings
) -> dict[str, Tensor]:
    """Learn the mask of every BatchNorm scale, in [0, 1], by the BatchNorm's name."""
    module = copied(network).requires_grad_(False).train()  # running statistics move in the copy
    norms = need_batch_norms(module, "ANP")
    masks = {name: torch.ones_like(norm.weight, requires_grad=True) for name, norm in norms.items()}
    optimiser = torch.optim.SGD(
        masks.values(), lr=settings.learning_rate, momentum=settings.momentum
    )
    generator = torch.Generator().manual_seed(seed)
    step = 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout has no other source
        while step < settings.steps:
            for images, labels in batches(
                clean,
                network,
                size=settings.batch,
                padding=settings.padding,
                flip=settings.flip,
                generator=generator,
            ):
                optimiser.zero_grad()
                mask_loss(module, masks, images, labels, settings, generator).backward()
                optimiser.step()
                with torch.no_grad():
                    for mask in masks.values():
                        mask.clamp_(0, 1)
                step += 1
                if step == settings.steps:
                    break
    return {name: mask.detach() for name, mask in masks.items()}


def mask_loss(
    module: nn.Module,
    masks: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    settings: AnpSettings,
    generator: torch.Generator,
) -> Tensor:
    """Return the weighted sum alpha CE(masks) + (1 - alpha) CE(masks and adversarial noise)."""
    scale_noise, shift_noise = worst_noise(module, masks, images, labels, settings, generator)
    plain = cross_entropy(_masked(module, masks, {}, {}, images), labels)
    noisy = cross_entropy(_masked(module, masks, scale_noise, shift_noise, images), labels)
    return settings.alpha * plain + (1 - settings.alpha) * noisy


def worst_noise(
    module: nn.Module,
    masks: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    settings: AnpSettings,
    generator: torch.Generator,
) -> tuple[Noise, Noise]:
    """Find noise on scales and shifts, from a uniform start by sign ascent on the loss."""
    fixed = {name: mask.detach() for name, mask in masks.items()}
    noises = [
        {name: _uniform(mask, settings.budget, generator) for name, mask in masks.items()}
        for _ in range(2)
    ]
    for _ in range(settings.noise_steps):
        flat = [noise.requires_grad_(True) for group in noises for noise in group.values()]
        loss = cross_entropy(_masked(module, fixed, noises[0], noises[1], images), labels)
        gradients = torch.autograd.grad(loss, flat)
        size = settings.budget / settings.noise_steps
        moved = iter(
            (noise.detach() + size * gradient.sign()).clamp(-settings.budget, settings.budget)
            for noise, gradient in zip(flat, gradients, strict=True)
        )
        noises = [{name: next(moved) for name in group} for group in noises]
    return noises[0], noises[1]


def _masked(
    module: nn.Module, masks: dict[str, Tensor], scale: Noise, shift: Noise, images: Tensor
) -> Tensor:
    changed: dict[str, Tensor] = {}
    for name, mask in masks.items():
        norm = module.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        changed[f"{name}.weight"] = norm.weight * (mask + scale.get(name, 0.0))
        changed[f"{name}.bias"] = norm.bias * (1 + shift.get(name, 0.0))
    logits: Tensor = functional_call(module, changed, (images,))
    return logits


def _uniform(like: Tensor, budget: float, generator: torch.Generator) -> Tensor:
    drawn = torch.rand(like.shape, generator=generator) * 2 - 1
    return budget * drawn.to(like)
