"""Share what defences need: states of defended networks, and batches of the clean images."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as functional
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.data.images import LabelledImages
from benchmarks.networks.training import augment
from edgeclean.errors import UsageError
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import (
    JsonValue,
    Network,
    PurifiedNetwork,
    following,
    record,
)


class Defence(Protocol):
    """A function from a network, and clean images where it needs some, to a new network."""

    def __call__(self, network: Network, clean: LabelledImages, seed: int) -> Network:
        """Return the defended network; the arguments stay unchanged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenceEntry:
    """A defence as an entry of a table.

    Attributes:
        defend: the function that defends a network.
        images: the images that it is given, in words: "none" or "1 % of the clean training set".
        settings: dataclasses of its settings, for the record.
    """

    defend: Defence
    images: str
    settings: tuple[object, ...] = ()


def defended(
    network: Network,
    module: nn.Module,
    name: str,
    settings: object,
    notes: dict[str, JsonValue],
) -> PurifiedNetwork:
    """Return ``module`` in evaluation mode as the next state of ``network``."""
    module.eval()
    made_by = record(name, module, network.spec, settings, notes)
    return following(network, PurifiedNetwork, module, made_by)


def batches(
    clean: LabelledImages,
    network: Network,
    *,
    size: int,
    padding: int,
    flip: bool,
    generator: torch.Generator,
) -> Iterator[tuple[Float[Tensor, "n c h w"], Int[Tensor, " n"]]]:
    """Yield one pass over the clean images, shuffled, augmented and normalised for the network.

    A last batch of one image is left out: BatchNorm cannot train on it.
    """
    order = torch.randperm(len(clean), generator=generator)
    device = next(network.module.parameters()).device
    for start in range(0, len(clean), size):
        chosen = order[start : start + size]
        if len(chosen) < 2:
            continue
        pixels = augment(clean.pixels[chosen], padding, flip, generator).to(device).float() / 255
        yield normalize_on(pixels, network), clean.labels[chosen].to(device)


def normalize_on(pixels: Float[Tensor, "n c h w"], network: Network) -> Float[Tensor, "n c h w"]:
    """Normalise pixels on their own device."""
    device = pixels.device
    return normalize(pixels.cpu(), network.spec).to(device)


def batch_norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Return every BatchNorm2d with scale and shift, by dotted name."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.BatchNorm2d) and layer.affine
    }


def need_batch_norms(module: nn.Module, name: str) -> dict[str, nn.BatchNorm2d]:
    """Return `batch_norms`, or refuse a network without any in the name of the defence.

    Raises:
        UsageError: there is none.
    """
    found = batch_norms(module)
    if not found:
        raise UsageError(
            f"{name} works on BatchNorm scales and this network has none; "
            f"choose a defence that does not need them"
        )
    return found


def need_images(clean: LabelledImages, name: str) -> None:
    """Refuse a call without clean images to a defence that needs them.

    Raises:
        UsageError: there is none.
    """
    if not len(clean):
        raise UsageError(f"{name} needs clean labelled images and got none; give it some")


def copied(network: Network) -> nn.Module:
    """Return a copy of the network's module in evaluation mode, all of it trainable."""
    return copy.deepcopy(network.module).eval().requires_grad_(True)


def cross_entropy(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Tensor:
    """Return the mean cross-entropy."""
    return functional.cross_entropy(logits, labels)
