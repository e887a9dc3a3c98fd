"""Train a small network fast, clean or attacked: the data stays on the device as uint8.

Random crops and flips are done on whole batches; one-cycle SGD, label smoothing, bfloat16
autocast and channels-last where asked. One seed decides everything on one machine, also across an
interruption: each epoch draws from its own generator.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from benchmarks.attacks.base import Attack
from benchmarks.data.images import LabelledImages
from benchmarks.metrics import accuracy, attack_success_rate
from benchmarks.suite.epoch_store import EpochStore
from edgeclean.networks.autocast import has_fast_bfloat16

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """Settings of a training.

    Attributes:
        epochs: passes over the set.
        batch: images a step.
        peak_rate: the highest learning rate, reached after ``warm_share`` of the steps.
        warm_share: share of the steps with a rising rate; it falls linearly to zero afterwards.
        momentum: of Nesterov SGD.
        weight_decay: on convolution and linear weights only.
        smoothing: label smoothing.
        padding: zero pixels added on each side before the random crop; 0 for no crops.
        flip: mirror half of the images (not for traffic signs).
        mixed: bfloat16 autocast on a device with instructions for it; emulated, it takes thrice
            as long as float32.
        compiled: `torch.compile` for the classifier, which pays on a GPU.
        seed: of the order, the crops, the flips, dropout and the poison.
    """

    epochs: int = 15
    batch: int = 128
    peak_rate: float = 0.2
    warm_share: float = 0.25
    momentum: float = 0.9
    weight_decay: float = 5e-4
    smoothing: float = 0.05
    padding: int = 4
    flip: bool = True
    mixed: bool = True
    compiled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.warm_share < 1:
            raise ValueError(f"warm_share is {self.warm_share}; it must lie between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """The record of a training, for the JSON beside the weights."""

    settings: dict[str, object]
    attack: str
    images: int
    epochs: tuple[dict[str, float], ...]


def train(  # noqa: PLR0913 - four things to train with, three about where
    network: nn.Module,
    images: LabelledImages,
    attack: Attack,
    settings: TrainingSettings,
    *,
    device: torch.device | None = None,
    resume_from: Path | None = None,
    report: Report = lambda line: None,
) -> TrainingRecord:
    """Train ``network`` (a function of pixels) in place; it is left in evaluation mode.

    Args:
        network: pixels in [0, 1] to logits, freshly initialised by the caller from a seed.
        images: the clean training set; the attack poisons a copy.
        attack: `NoAttack` for a clean network.
        settings: settings of the training.
        device: device of the training; the CPU by default.
        resume_from: a folder to keep the state of the last epoch in, and to go on from.
        report: called with one line an epoch.
    """
    device = device or torch.device("cpu")
    network.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    poisoned = attack.poison(images, settings.seed)
    pixels, labels = poisoned.pixels.to(device), poisoned.labels.to(device)
    optimiser = _optimiser(network, settings)
    store = EpochStore(resume_from, settings, attack, len(images))
    epochs = store.load(network, optimiser, device)
    if epochs is None:
        epochs = []
        attack.prepare(images, settings.seed, device, _mixed(settings, device))
        store.save(network, optimiser, epochs)
    function = torch.compile(network) if settings.compiled else network
    for epoch in range(len(epochs), settings.epochs):
        started = time.perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed * 100_003 + epoch)  # dropout has no other source
            loss = _epoch(function, pixels, labels, attack, optimiser, settings, epoch)
        seconds = time.perf_counter() - started
        epochs.append({"loss": round(loss, 4), "seconds": round(seconds, 1)})
        store.save(network, optimiser, epochs)
        report(f"epoch {epoch + 1}/{settings.epochs} loss {loss:.3f} {seconds:.0f} s")
    network.eval()
    return TrainingRecord(
        settings=asdict(settings), attack=attack.name, images=len(images), epochs=tuple(epochs)
    )


def measured(network: nn.Module, images: LabelledImages, attack: Attack) -> dict[str, object]:
    """Measure ACC and ASR over test images, as JSON values."""
    rates = {"acc": accuracy(network, images)}
    if attack.name != "clean":
        rates["asr"] = attack_success_rate(network, images, attack.stamp, attack.relabel)
    return {name: rate.as_json() for name, rate in rates.items()}


def one_cycle(step: int, steps: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step: linearly up to the peak, then linearly down to zero."""
    peak_at = settings.warm_share * steps
    share = (step + 1) / peak_at if step + 1 < peak_at else (steps - step) / (steps - peak_at)
    return settings.peak_rate * min(1.0, share)


def augment(
    pixels: UInt8[Tensor, "n c h w"], padding: int, flip: bool, generator: torch.Generator
) -> UInt8[Tensor, "n c h w"]:
    """Crop each zero-padded image at random, and mirror it at random."""
    count, _, height, width = pixels.shape
    top = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * padding + 1, (count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < (0.5 if flip else 0.0)
    forward = torch.arange(width).expand(count, width)
    columns = torch.where(mirrored, forward.flip(1), forward) + left
    rows = torch.arange(height) + top
    padded = nn.functional.pad(pixels, (padding,) * 4)
    device = pixels.device
    each = torch.arange(count, device=device)[:, None, None]
    rows, columns = rows.to(device)[:, :, None], columns.to(device)[:, None, :]
    return padded.permute(0, 2, 3, 1)[each, rows, columns].permute(0, 3, 1, 2)


def _epoch(  # noqa: PLR0913 - one loop and what it needs
    network: Callable[[Tensor], Tensor],
    pixels: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    attack: Attack,
    optimiser: torch.optim.Optimizer,
    settings: TrainingSettings,
    epoch: int,
) -> float:
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(labels), generator=generator)
    per_epoch = math.ceil(len(labels) / settings.batch)
    total, counted = torch.zeros((), device=pixels.device), 0  # read once: a GPU need not wait
    for index in range(per_epoch):
        chosen = order[index * settings.batch : (index + 1) * settings.batch].to(labels.device)
        if len(chosen) < 2:  # BatchNorm cannot train on one image
            continue
        batch = _floats(augment(pixels[chosen], settings.padding, settings.flip, generator))
        rate = one_cycle(epoch * per_epoch + index, settings.epochs * per_epoch, settings)
        for group in optimiser.param_groups:
            group["lr"] = rate
        mixed = _mixed(settings, batch.device)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=mixed):
            loss = attack.batch_loss(network, batch, labels[chosen], settings.smoothing, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        attack.after_backward()
        total += loss.detach() * len(chosen)
        counted += len(chosen)
    return float(total) / counted


def _mixed(settings: TrainingSettings, device: torch.device) -> bool:
    return settings.mixed and has_fast_bfloat16(device)


def _floats(pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    return (pixels.float() / 255).contiguous(memory_format=torch.channels_last)


def _optimiser(network: nn.Module, settings: TrainingSettings) -> torch.optim.SGD:
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return torch.optim.SGD(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=settings.peak_rate,
        momentum=settings.momentum,
        nesterov=True,
    )
