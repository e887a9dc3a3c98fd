"""Synthesise images from a network alone, by its BatchNorm statistics and a class loss.

Source: Clean & Compact, slide 10 (ZeroQ's statistics matching plus a class loss taken through the
constrained network). Where we deviate:

* statistics of the whole batch, at the inputs of every BatchNorm, each divided by its running
  variance (the paper's sum gives wide, late layers all the weight);
* the start is a procedural image, not noise, so images differ from each other from the first step;
* labels are balanced over the whole set of images, whatever its batches; they are soft, and half
  of them mix two classes, because images at confidence 1.00 constrain the function near real ones
  little;
* pixels stay in [0, 1] by a sigmoid, with total variation and random shifts and flips.

A network without BatchNorm has no statistics: the same loop then keeps a high-confidence class
loss, balanced over classes, near the procedural start (``origin`` names it).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.images.batchnorm import StatisticsDistance, running_batchnorm_layers
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.autocast import device_of, mixed_precision
from edgeclean.networks.batching import answers_at_once, images_at_once
from edgeclean.networks.finite import require_finite_loss
from edgeclean.networks.pixels import pixel_copy
from edgeclean.networks.state import Network, SyntheticImages
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesizeSettings(Settings):
    """The number of images, and how long each batch is optimised.

    Attributes:
        count: images in all.
        recovery_count: images made anew from the purified network, for what follows it.
        recovery_steps: Adam steps for each batch of those: more images, each less exact,
            recover more accuracy in the same time.
        steps: Adam steps for each batch.
        batch_size: images optimised together, whose statistics are matched as one batch; of large
            images as many as fit into memory (`batching`).
        learning_rate: the rate of Adam on the logits of the pixels, falling along a cosine.
        class_weight: the weight of the class loss beside the statistics distance.
        smoothness_weight: the weight of total variation.
    """

    count: int = setting(640, at_least=1, at_most=10**5)
    recovery_count: int = setting(1024, at_least=1, at_most=10**5)
    recovery_steps: int = setting(40, at_least=1, at_most=10**6)
    steps: int = setting(80, at_least=1, at_most=10**6)
    batch_size: int = setting(256, at_least=2, at_most=2**14)
    learning_rate: float = setting(0.1, above=0, at_most=10)
    class_weight: float = setting(0.02, at_least=0, at_most=1000)
    smoothness_weight: float = setting(0.1, at_least=0, at_most=1000)

    def recovery(self) -> SynthesizeSettings:
        """Return the settings for the images made from the purified network."""
        return replace(self, count=self.recovery_count, steps=self.recovery_steps)


def synthesize(
    network: Network,
    settings: SynthesizeSettings,
    *,
    seed: int,
    progress: Progress = silent,
    classifier: Network | None = None,
) -> SyntheticImages:
    """Make images whose batch statistics match the running ones of ``network``'s BatchNorms.

    Args:
        network: the source of the statistics.
        settings: see `SynthesizeSettings`.
        seed: decides the start, the labels and the shifts.
        progress: called after every step.
        classifier: the network that takes the class loss instead of ``network`` (the paper's
            constrained network).

    Returns:
        ``settings.count`` images in [0, 1]; ``origin`` names how they were made.
    """
    generator = torch.Generator().manual_seed(seed)
    source = pixel_copy(network).requires_grad_(False)
    judge = source if classifier is None else pixel_copy(classifier).requires_grad_(False)
    seeing = (source,) if judge is source else (source, judge)
    at_once = min(
        images_at_once(network.spec.input_shape, *seeing), answers_at_once(network.spec.classes)
    )
    sizes = _batch_sizes(settings.count, min(settings.batch_size, at_once))
    total = len(sizes) * settings.steps
    progress("Synthesising images", 0, total)
    labels = balanced_labels(settings.count, network.spec.classes, generator)
    pixels = []
    for batch_index, own in enumerate(labels.split(sizes)):
        start = procedural_images(len(own), network.spec.input_shape, generator)
        targets = soft_labels(own, network.spec.classes, generator)

        def notify(step: int, done: int = batch_index * settings.steps) -> None:
            progress("Synthesising images", done + step, total)

        batch = _Batch(start=start, targets=targets, generator=generator)
        pixels.append(_invert(source, judge, batch, settings, notify))
    has_statistics = bool(running_batchnorm_layers(source, pixels[0][:1]))
    origin = "batch-norm inversion" if has_statistics else "class inversion of procedural images"
    return SyntheticImages(pixels=torch.cat(pixels), labels=labels, origin=origin)


def joined(first: SyntheticImages, second: SyntheticImages) -> SyntheticImages:
    """Join two sets of images."""
    origin = first.origin if first.origin == second.origin else f"{first.origin}, {second.origin}"
    return SyntheticImages(
        pixels=torch.cat([first.pixels, second.pixels]),
        labels=torch.cat([first.labels, second.labels]),
        origin=origin,
    )


def balanced_labels(count: int, classes: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Return the class that each image of a whole set is made for, whatever its batches.

    Every class comes as often as any other, or once more; of fewer images than classes, as many
    classes as there are images are drawn, each at most once.
    """
    if count < classes:
        return torch.randperm(classes, generator=generator)[:count]
    return torch.arange(count) % classes


def soft_labels(
    first: Int[Tensor, " n"], classes: int, generator: torch.Generator
) -> Float[Tensor, "n k"]:
    """Return target distributions led by the classes ``first``; half mix in a second class."""
    count = len(first)
    second = torch.randint(classes, (count,), generator=generator)
    pure = torch.rand(count, generator=generator) < 0.5
    share = torch.where(pure, torch.ones(()), 0.5 + 0.5 * torch.rand(count, generator=generator))
    # In place, and in no whole numbers of eight bytes: of many classes there is much of this.
    targets = torch.zeros(count, classes)
    for own, part in ((first, share), (second, 1 - share)):
        targets.scatter_add_(1, own[:, None], part[:, None])
    return targets.mul_(0.95).add_(0.05 / classes)


def shifted(
    pixels: Float[Tensor, "n c h w"], generator: torch.Generator, share: float = 1 / 16
) -> Float[Tensor, "n c h w"]:
    """Roll the whole batch by up to ``share`` of its size, and mirror it every second time."""
    height, width = pixels.shape[-2:]
    rows = _random_shift(max(1, round(height * share)), generator)
    columns = _random_shift(max(1, round(width * share)), generator)
    rolled = torch.roll(pixels, (rows, columns), (2, 3))
    return rolled.flip(3) if torch.rand((), generator=generator) < 0.5 else rolled


@dataclass(frozen=True, slots=True)
class _Batch:
    start: Tensor
    targets: Tensor
    generator: torch.Generator


def _invert(
    source: nn.Module,
    judge: nn.Module,
    batch: _Batch,
    settings: SynthesizeSettings,
    notify: Callable[[int], None],
) -> Float[Tensor, "n c h w"]:
    """Optimise the logits of the pixels by Adam, from the procedural start."""
    device = device_of(source)
    start = (0.02 + 0.96 * batch.start).to(device, memory_format=torch.channels_last)
    targets = batch.targets.to(device)
    logits = torch.logit(start).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=settings.learning_rate, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.05 + 0.475 * (1 + math.cos(math.pi * step / settings.steps))
    )
    has_statistics = bool(running_batchnorm_layers(source, start[:1]))
    with StatisticsDistance(source) as statistics:
        for step in range(settings.steps):
            pixels = torch.sigmoid(logits)
            view = shifted(pixels, batch.generator)
            with mixed_precision(device):
                outputs = source(view)
                judged = outputs if judge is source else judge(view)
            log_odds = functional.log_softmax(judged.float(), 1)
            loss = -settings.class_weight * (targets * log_odds).sum(1).mean()
            loss = loss + settings.smoothness_weight * total_variation(pixels)
            # Without statistics, what keeps an image natural is the procedural one it came from.
            prior = statistics.distance() if has_statistics else (pixels - start).square().mean()
            optimizer.zero_grad()
            loss = loss + prior
            require_finite_loss(loss, "synthesize")
            loss.backward()
            optimizer.step()
            schedule.step()
            notify(step + 1)
    return torch.sigmoid(logits).detach().contiguous().cpu()


def total_variation(pixels: Float[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """Return the mean absolute difference of neighbours, rows plus columns; 0 for one pixel.

    It is a mean, and not scaled by the image's size beside that: photographs differ from pixel to
    pixel nearly as much at 224 pixels as at 32, for their spectra fall as 1/f (Field, 1987).
    """
    rows = (pixels[:, :, 1:] - pixels[:, :, :-1]).abs()
    columns = (pixels[:, :, :, 1:] - pixels[:, :, :, :-1]).abs()
    means = [one.mean() for one in (rows, columns) if one.numel()]
    return sum(means, torch.zeros((), device=pixels.device))


def _batch_sizes(count: int, batch_size: int) -> list[int]:
    """Return sizes that add up to ``count``, as equal as possible, at most ``batch_size``."""
    batches = math.ceil(count / batch_size)
    return [count // batches + (index < count % batches) for index in range(batches)]


def _random_shift(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(-limit, limit + 1, (), generator=generator))
