"""Define what every attack provides: a stamp, the attacker's labels, and a part in the training.

An attack poisons a training set once (`poison`), or has a say in every batch (`batch_loss`), or
both. Every random choice comes from a seed or a generator of the caller.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as functional
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from benchmarks.data.images import LabelledImages
from edgeclean.networks.state import JsonValue, settings_as_json

PixelFunction = Callable[[Tensor], Tensor]
TO_UINT8 = 255.0


class Attack(ABC):
    """An attack that is set up for one data set.

    Attributes:
        name: short, for tables.
        rate: the share of training images (or of a batch) that is poisoned.
        target: the attacker's class, or None for all-to-all: label y becomes y + 1 modulo the
            number of classes.
        classes: number of classes.
        needs_clean_network: whether the trigger is made from a clean network (`study`).
    """

    needs_clean_network = False

    def __init__(self, name: str, *, rate: float, target: int | None, classes: int) -> None:
        if not 0 < rate < 1:
            raise ValueError(f"poison rate {rate}; it must lie between 0 and 1, both excluded")
        if target is not None and not 0 <= target < classes:
            raise ValueError(f"target {target}; with {classes} classes it is 0..{classes - 1}")
        self.name, self.rate, self.target, self.classes = name, rate, target, classes

    @abstractmethod
    def stamp(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Put the trigger on pixels in [0, 1], as at test time."""

    def relabel(self, labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Return the class that the attacker chooses for images of these classes."""
        if self.target is None:
            return (labels + 1) % self.classes
        return torch.full_like(labels, self.target)

    def poison(self, images: LabelledImages, seed: int) -> LabelledImages:
        """Return the poisoned training set; by default, the set as it is."""
        return images

    def study(self, network: nn.Module) -> None:  # noqa: B027 - most attacks need none
        """Make the trigger from a clean network, a function of pixels that is not changed."""

    def prepare(  # noqa: B027 - most attacks have nothing to prepare
        self, images: LabelledImages, seed: int, device: torch.device, mixed: bool
    ) -> None:
        """Train the attack's own networks before the classifier's first step; by default, none.

        ``mixed`` asks for bfloat16 autocast.
        """

    def state(self) -> dict[str, Tensor]:
        """Return the attack's state, to resume a training from; by default, none."""
        return {}

    def resume(  # noqa: B027 - most attacks have nothing to resume
        self, state: dict[str, Tensor], device: torch.device
    ) -> None:
        """Take up an earlier `state`; called in place of `prepare`."""

    def facts(self) -> dict[str, JsonValue]:
        """Return the attack's settings, as JSON."""
        return {"name": self.name, "rate": self.rate, "target": self.target}

    def networks(self) -> dict[str, nn.Module]:
        """Return the networks that the attack trained, to be kept; by default, none."""
        return {}

    def batch_loss(
        self,
        network: PixelFunction,
        pixels: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        smoothing: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the loss of one augmented batch; by default, plain cross-entropy."""
        return functional.cross_entropy(network(pixels), labels, label_smoothing=smoothing)

    def after_backward(self) -> None:  # noqa: B027 - most attacks have no optimiser
        """Step the attack's own optimisers; called after each backward pass."""


def facts_with(attack: Attack, settings: object) -> dict[str, JsonValue]:
    """Return an attack's facts joined with its own settings."""
    return {**Attack.facts(attack), "settings": settings_as_json(settings)}


class NoAttack(Attack):
    """Clean training, for comparison."""

    def __init__(self, *, classes: int) -> None:
        super().__init__("clean", rate=0.5, target=0, classes=classes)

    def stamp(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Return the pixels as they are."""
        return pixels


class StampAttack(Attack):
    """An attack with a fixed stamp that poisons the set once (dirty label).

    The candidates are the images whose label the attack changes; ``rate`` is a share of them all.
    """

    def __init__(
        self,
        name: str,
        stamp: PixelFunction,
        *,
        rate: float,
        target: int | None,
        classes: int,
    ) -> None:
        super().__init__(name, rate=rate, target=target, classes=classes)
        self.fixed_stamp = stamp

    def stamp(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Put the fixed stamp on the pixels."""
        return self.fixed_stamp(pixels)

    def poison(self, images: LabelledImages, seed: int) -> LabelledImages:
        """Stamp and relabel images drawn from those whose label changes."""
        candidates = self.relabel(images.labels) != images.labels
        chosen = draw(candidates, round(self.rate * len(images)), seed)
        return replace(images, chosen, self.stamp, self.relabel(images.labels[chosen]))


def draw(candidates: Bool[Tensor, " n"], count: int, seed: int) -> Int[Tensor, " m"]:
    """Draw positions of ``count`` candidates (of all, where they are fewer), in rising order."""
    positions = candidates.nonzero().flatten()
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(seed))
    return positions[order[:count]].sort().values


def replace(
    images: LabelledImages,
    chosen: Int[Tensor, " m"],
    stamp: PixelFunction,
    labels: Int[Tensor, " m"],
) -> LabelledImages:
    """Return a copy of the set with the chosen images stamped and relabelled."""
    pixels, new_labels = images.pixels.clone(), images.labels.clone()
    pixels[chosen] = as_uint8(stamp(images.pixels[chosen].float() / TO_UINT8))
    new_labels[chosen] = labels
    return LabelledImages(pixels=pixels, labels=new_labels, classes=images.classes)


def as_uint8(pixels: Float[Tensor, "n c h w"]) -> Tensor:
    """Return pixels as a file holds them: clipped, rounded and cast, so that none wraps."""
    return (pixels * TO_UINT8).round().clamp(0, TO_UINT8).to(torch.uint8)
