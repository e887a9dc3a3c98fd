"""I-BAU unlearns the worst universal perturbation; its gradient sees how that follows the weights.

Source: Zeng et al. (2022), "Adversarial unlearning of backdoors via implicit hypergradient". The
perturbed share of a batch is at least one image (with 1 % of a batch below 100 images the public
code perturbs none, and so unlearns nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.data.images import LabelledImages
from benchmarks.defences.base import batches, copied, cross_entropy, defended, need_images
from edgeclean.errors import UsageError
from edgeclean.networks.state import Network, PurifiedNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class IbauSettings:
    """Settings of I-BAU; the defaults are the paper's.

    Attributes:
        rounds: rounds of one perturbation and one pass of unlearning.
        batch: images a step.
        learning_rate: learning rate of the weights (Adam).
        ascent_rate: learning rate of the perturbation (SGD).
        penalty: weight of its squared L2 norm.
        radius: largest L2 norm of the perturbation that is unlearned.
        terms: terms of the series for the implicit part of the gradient (K).
        inner_rate: step of that series' fixed-point map.
        share: share of a batch that is perturbed while unlearning; at least one image.
    """

    rounds: int = 5
    batch: int = 100
    learning_rate: float = 1e-3
    ascent_rate: float = 10.0
    penalty: float = 1e-3
    radius: float = 10.0
    terms: int = 5
    inner_rate: float = 0.1
    share: float = 0.01

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise UsageError(f"terms is {self.terms}; the series needs at least one")


def ibau(
    network: Network,
    clean: LabelledImages,
    seed: int = 0,
    settings: IbauSettings | None = None,
) -> PurifiedNetwork:
    """Find and unlearn the perturbation in rounds, in evaluation mode throughout."""
    settings = settings or IbauSettings()
    need_images(clean, "I-BAU")
    module = copied(network)
    optimiser = torch.optim.Adam(module.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.rounds):
        rounds = list(
            batches(
                clean,
                network,
                size=settings.batch,
                padding=0,
                flip=False,
                generator=generator,
            )
        )
        perturbation = worst_perturbation(module, [images for images, _ in rounds], settings)
        for images, labels in rounds:
            rows = perturbed_rows(len(images), settings.share, generator)
            gradients = unlearning_gradient(
                module, perturbation, rounds[0][0], images, labels, rows, settings
            )
            for weight, gradient in zip(module.parameters(), gradients, strict=True):
                weight.grad = gradient
            optimiser.step()
    return defended(network, module, "i-bau", settings, {"images": len(clean)})


def hypergradient(
    outer: Tensor,
    mapped: Tensor,
    perturbation: Tensor,
    weights: Sequence[Tensor],
    terms: int,
) -> tuple[Tensor, ...]:
    """Return the gradient of ``outer`` over the weights, through a map's fixed point as well.

    With Phi the map and delta = Phi(delta, weights) its fixed point,
    d outer / d w = partial_w outer + (partial_w Phi)^T v, where
    v = sum_{k < terms} ((partial_delta Phi)^T)^k partial_delta outer.

    Args:
        outer: the outer loss, a graph over ``perturbation`` and ``weights``.
        mapped: Phi(perturbation), a graph over both.
        perturbation: delta, a leaf.
        weights: the leaves to differentiate for.
        terms: terms of the series.

    Source: Lorraine et al. (2020); Grazzi et al. (2020), the fixed-point method.
    """
    direct = torch.autograd.grad(
        outer, [perturbation, *weights], retain_graph=True, allow_unused=True
    )
    source = torch.zeros_like(perturbation) if direct[0] is None else direct[0]
    series = source.clone()
    for _ in range(terms - 1):
        (pulled,) = torch.autograd.grad(mapped, perturbation, series, retain_graph=True)
        series = pulled + source
    implicit = torch.autograd.grad(
        mapped, list(weights), series, retain_graph=True, allow_unused=True
    )
    return tuple(
        torch.zeros_like(weight)
        + (0 if straight is None else straight)
        + (0 if through is None else through)
        for weight, straight, through in zip(weights, direct[1:], implicit, strict=True)
    )


def worst_perturbation(
    module: nn.Module, image_batches: Sequence[Tensor], settings: IbauSettings
) -> Float[Tensor, "1 c h w"]:
    """Return a perturbation within the radius, by ascent on the loss against the own answers."""
    perturbation = torch.zeros_like(image_batches[0][:1])
    for images in image_batches:
        perturbation.requires_grad_(True)
        loss = inner_loss(module, perturbation, images, settings.penalty)
        (gradient,) = torch.autograd.grad(loss, perturbation)
        perturbation = (perturbation - settings.ascent_rate * gradient).detach()
    norm = perturbation.norm()
    return perturbation * min(1.0, settings.radius / float(norm + 1e-12))


def inner_loss(
    module: Callable[[Tensor], Tensor], perturbation: Tensor, images: Tensor, penalty: float
) -> Tensor:
    """Return the perturbation's loss: minus the loss against the own answers, plus the penalty."""
    with torch.no_grad():
        answers = module(images).argmax(1)
    return (
        -cross_entropy(module(images + perturbation), answers)
        + penalty * perturbation.square().sum()
    )


def unlearning_gradient(  # noqa: PLR0913 - the two losses' data
    module: nn.Module,
    perturbation: Float[Tensor, "1 c h w"],
    inner_images: Float[Tensor, "m c h w"],
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    rows: Int[Tensor, " k"],
    settings: IbauSettings,
) -> tuple[Tensor, ...]:
    """Return each weight's gradient of the loss with the perturbation on the images in ``rows``.

    The perturbation is taken as the weights' own: the fixed point of descent on `inner_loss`.
    """
    names = [name for name, _ in module.named_parameters()]
    weights = [weight.detach().requires_grad_(True) for weight in module.parameters()]
    delta = perturbation.detach().requires_grad_(True)

    def run(batch: Tensor) -> Tensor:
        logits: Tensor = functional_call(module, dict(zip(names, weights, strict=True)), (batch,))
        return logits

    inner = inner_loss(run, delta, inner_images, settings.penalty)
    (slope,) = torch.autograd.grad(inner, delta, create_graph=True)
    mapped = delta - settings.inner_rate * slope
    perturbed = torch.zeros(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)
    perturbed[rows] = 1
    outer = cross_entropy(run(images + perturbed * delta), labels)
    return hypergradient(outer, mapped, delta, weights, settings.terms)


def perturbed_rows(count: int, share: float, generator: torch.Generator) -> Int[Tensor, " m"]:
    """Draw the images of a batch that get the perturbation, at least one."""
    return torch.randperm(count, generator=generator)[: max(1, int(count * share))]
