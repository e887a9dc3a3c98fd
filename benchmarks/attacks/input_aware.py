"""Input-Aware generates a trigger for each image, by a network that trains with the classifier.

Source: Nguyen and Tran (2020), "Input-aware dynamic backdoor attack". A mask network says where
(trained first, then fixed), a generator says what; another image's trigger must not work ("cross
trigger"), and triggers must differ as their images do (diversity loss). Deviation: the partner of
an image is its neighbour in the batch, not one of a second loader.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.attacks.base import Attack, PixelFunction, facts_with
from benchmarks.data.images import LabelledImages
from edgeclean.networks.state import JsonValue

TINY = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAwareSettings:
    """Settings of the generator's and the mask network's training.

    Attributes:
        density: share of the pixels that the mask may cover without a penalty.
        mask_epochs: passes over the set for the mask network, before the classifier's first step.
        learning_rate: learning rate of both Adam optimisers.
        width: channels of the two networks' first layer.
        batch: images a step while the mask network trains.
    """

    density: float = 0.032
    mask_epochs: int = 10
    learning_rate: float = 0.01
    width: int = 32
    batch: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.density < 1:
            raise ValueError(f"density is {self.density}; it must lie between 0 and 1")


class InputAware(Attack):
    """An attack with a generator, a mask network and their optimisers.

    Args:
        classes: number of classes.
        target: the attacker's class; None for all-to-all.
        rate: share of each batch that is poisoned; as many get another image's trigger.
        settings: settings of the two networks.
    """

    def __init__(
        self,
        *,
        classes: int,
        target: int | None = 0,
        rate: float = 0.1,
        settings: InputAwareSettings | None = None,
    ) -> None:
        name = "input-aware" if target is not None else "input-aware-a2a"
        super().__init__(name, rate=rate, target=target, classes=classes)
        self.settings = settings or InputAwareSettings()
        self.generator_network = EncoderDecoder(self.settings.width, outputs=3)
        self.mask_network = EncoderDecoder(self.settings.width, outputs=1)
        self._optimiser = self._adam(self.generator_network)
        self._mask_optimiser = self._adam(self.mask_network)

    def stamp(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Put each image's own pattern where its own mask is."""
        self.generator_network.to(pixels.device).eval()
        self.mask_network.to(pixels.device).eval()
        with torch.no_grad():
            return _overlay(pixels, self._pattern(pixels), self._mask(pixels))

    def prepare(self, images: LabelledImages, seed: int, device: torch.device, mixed: bool) -> None:
        """Reset both networks from the seed and train the mask network."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for network in (self.generator_network, self.mask_network):
                network.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
                network.apply(_reset)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.settings.mask_epochs):
            order = torch.randperm(len(images), generator=generator)
            for start in range(0, len(images) - 1, self.settings.batch):
                chosen = order[start : start + self.settings.batch]
                self._mask_step(images.pixels[chosen].to(device).float() / 255, mixed)
        self._fix_mask()

    def facts(self) -> dict[str, JsonValue]:
        """Return the attack's facts with the settings of the two networks."""
        return facts_with(self, self.settings)

    def state(self) -> dict[str, Tensor]:
        """Return both networks, and the moments of the generator's optimiser."""
        held = nn.ModuleDict(self.networks()).state_dict()
        for name, parameter in self.generator_network.named_parameters():
            moments = self._optimiser.state.get(parameter, {})
            held |= {f"adam.{name}.{key}": value for key, value in moments.items()}
        return held

    def resume(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Restore both networks and the optimiser."""
        networks = nn.ModuleDict(self.networks()).to(device)
        networks.load_state_dict({key: state[key] for key in networks.state_dict()})
        for name, parameter in self.generator_network.named_parameters():
            prefix = f"adam.{name}."
            moments = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if moments:
                at = {"step": torch.device("cpu")}  # Adam counts its steps there
                self._optimiser.state[parameter] = {
                    key: value.to(at.get(key, device)) for key, value in moments.items()
                }
        self._fix_mask()

    def networks(self) -> dict[str, nn.Module]:
        """Return the generator and the mask network."""
        return {"generator": self.generator_network, "mask": self.mask_network}

    def batch_loss(
        self,
        network: PixelFunction,
        pixels: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        smoothing: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the cross-entropy of poison, cross triggers and the rest, plus diversity."""
        count = max(1, round(self.rate * len(labels)))
        own, cross = slice(0, count), slice(count, 2 * count)
        self.generator_network.train()
        partners = pixels.roll(1, dims=0)
        patterns = self._pattern(pixels[own])
        others = self._pattern(partners[cross])
        mixed = torch.cat(
            (
                _overlay(pixels[own], patterns, self._mask(pixels[own])),
                _overlay(pixels[cross], others, self._mask(partners[cross])),
                pixels[2 * count :],
            )
        )
        targets = torch.cat((self.relabel(labels[own]), labels[count:]))
        loss = functional.cross_entropy(network(mixed), targets, label_smoothing=smoothing)
        between = min(len(patterns), len(others))
        spread = diversity_loss(
            pixels[own][:between], partners[cross][:between], patterns[:between], others[:between]
        )
        return loss + spread

    def after_backward(self) -> None:
        """Make one step of the generator."""
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)  # or the next batch adds to this one's

    def _fix_mask(self) -> None:
        self._mask_optimiser.zero_grad(set_to_none=True)
        self.mask_network.eval().requires_grad_(False)

    def _adam(self, network: nn.Module) -> torch.optim.Adam:
        rate = self.settings.learning_rate
        return torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.9))

    def _mask_step(self, pixels: Float[Tensor, "n c h w"], mixed: bool) -> None:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=mixed):
            loss = mask_loss(self._mask(pixels), pixels, self.settings.density)
        self._mask_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._mask_optimiser.step()

    def _pattern(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
        return torch.tanh(self.generator_network(pixels).float()) / 2 + 0.5

    def _mask(self, pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
        raw = torch.tanh(self.mask_network(pixels).float()) / 2 + 0.5
        return torch.tanh(20 * raw - 10) / 2 + 0.5


def mask_loss(
    masks: Float[Tensor, "n 1 h w"], pixels: Float[Tensor, "n c h w"], density: float
) -> Tensor:
    """Return 100 times the masks' mean cover beyond the density, plus their diversity loss."""
    beyond = functional.relu(masks - density).mean()
    # The partner of an image is its neighbour; its mask was made in the same batch.
    partners, others = pixels.roll(1, dims=0), masks.roll(1, dims=0)
    return 100 * beyond + diversity_loss(pixels, partners, masks, others)


class EncoderDecoder(nn.Module):
    """A network with two poolings and two enlargements, for images whose sides are at least 4."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.down1 = _double(3, width)
        self.down2 = _double(width, 2 * width)
        self.middle = _double(2 * width, 4 * width)
        self.up2 = _double(4 * width, 2 * width)
        self.up1 = _double(2 * width, width)
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels to raw patterns of the same height and width."""
        outer = self.down1(pixels)
        inner = self.down2(functional.max_pool2d(outer, 2))
        middle = self.middle(functional.max_pool2d(inner, 2))
        grown = self.up2(functional.interpolate(middle, size=inner.shape[2:], mode="bilinear"))
        full = self.up1(functional.interpolate(grown, size=outer.shape[2:], mode="bilinear"))
        patterns: Tensor = self.last(full)
        return patterns


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs, momentum=0.05),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs, momentum=0.05),
        nn.ReLU(),
    )


def _reset(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
        layer.reset_parameters()


def _overlay(pixels: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    return pixels + (patterns - pixels) * masks


def diversity_loss(images: Tensor, partners: Tensor, outputs: Tensor, others: Tensor) -> Tensor:
    """Return the mean of (distance of two images / distance of their outputs), root mean square."""
    between_images = (images - partners).square().mean((1, 2, 3)).sqrt()
    between_outputs = ((outputs - others).square().mean((1, 2, 3)) + TINY**2).sqrt()
    return (between_images / (between_outputs + TINY)).mean()
