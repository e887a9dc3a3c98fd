"""Plant a backdoor in a network within seconds, on images made from a seed.

Each class is a smooth random pattern under noise; a small white patch near the corner sends the
others to class 1. It is no test of accuracy: it gives each architecture weights and BatchNorm
statistics that were trained, and a trigger to find.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from benchmarks.architectures.table import Architecture, logits_of
from benchmarks.attacks.base import StampAttack, as_uint8
from benchmarks.data.images import LabelledImages
from benchmarks.stamps import PastePatch

MEAN, STD = 0.5, 0.25  # of every channel
TARGET, POISONED = 1, 0.25
TRAIN_IMAGES, TEST_IMAGES = 960, 240
BATCH, RATE = 32, 3e-3
MOST_STEPS, FEWEST_STEPS = 120, 60
WORK = 30_000_000_000  # multiply-accumulates of all forward passes of a training, about


def images_of(architecture: Architecture, *, test: bool = False) -> LabelledImages:
    """Return clean images of an architecture's shape, with labels; the test set is another draw."""
    channels, height, width = architecture.input_shape
    patterns_of = torch.Generator().manual_seed(1)
    coarse = (min(height, 4), min(width, 4))
    patterns = torch.randn(architecture.classes, channels, *coarse, generator=patterns_of)
    patterns = functional.interpolate(patterns, (height, width), mode="bilinear")
    generator = torch.Generator().manual_seed(3 if test else 2)
    count = TEST_IMAGES if test else TRAIN_IMAGES
    labels = torch.randint(0, architecture.classes, (count,), generator=generator)
    noise = torch.randn(count, channels, height, width, generator=generator)
    light = torch.randn(count, 1, 1, 1, generator=generator)
    pixels = 0.5 + 0.15 * patterns[labels] + 0.1 * noise + 0.05 * light
    names = tuple(str(one) for one in range(architecture.classes))
    return LabelledImages(pixels=as_uint8(pixels), labels=labels, classes=names)


def attack_of(architecture: Architecture) -> StampAttack:
    """Return BadNets with a white patch of 3x3 pixels near a corner; larger in larger images."""
    channels, height, width = architecture.input_shape
    side = max(3, min(height, width) // 12)
    tall, wide = min(side, height), side if height > 1 else 8
    margin = 1 if height > side else 0
    stamp = PastePatch(
        patch=torch.ones(channels, tall, wide),
        top=height - tall - margin,
        left=width - wide - 1,
    )
    return StampAttack("badnets", stamp, rate=POISONED, target=TARGET, classes=architecture.classes)


def normalised(pixels: Tensor) -> Tensor:
    """Return what the network takes, of pixels in [0, 1] or of bytes."""
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return (pixels - MEAN) / STD


def steps_of(macs: int) -> int:
    """Return how many steps a network of so many multiply-accumulates is trained."""
    return max(FEWEST_STEPS, min(MOST_STEPS, WORK // (BATCH * max(1, macs))))


def plant(network: nn.Module, architecture: Architecture, steps: int, seed: int) -> None:
    """Train a network in place on poisoned images, and leave it in evaluation mode."""
    poisoned = attack_of(architecture).poison(images_of(architecture), seed)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2 * RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # dropout has no other source
        for _ in range(steps):
            chosen = torch.randint(0, len(poisoned), (BATCH,), generator=generator)
            answer = logits_of(network(normalised(poisoned.pixels[chosen])))
            loss = functional.cross_entropy(answer, poisoned.labels[chosen])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            schedule.step()
    network.eval()
