"""Unlearn triggers while they adapt: a small minimax optimisation on synthetic images.

A network that only unlearns the triggers it is shown tends to keep the true one
(``benchmarks/studies/ablations.py`` measures it); so every trigger follows the network, a few
gradient steps at a time. Both halves:

* ascent: every trigger moves to send images to its target, and may not grow past its cap;
* descent: the student gives a stamped image the *teacher's* answer for the image without it; an
  additive trigger is also stamped more strongly than it was found (`population`). Of images without
  a stamp it keeps the answer, and the features that the network as it came has of them; those of
  stamped images are left free.

Source: the alternation of I-BAU (Zeng et al., ICLR 2022), with patch, additive and warp families
instead of one additive perturbation, on synthetic and procedural images, distilled not labelled.

After the first round the teacher is the network as it came, but not for the suspected classes
(`overruled`). A backdoor that one round of unlearning had removed came back in part in the next,
although no stamped image had the trigger's class as its target. The cause is the infected network's
own logit of the target class: a student distilled from itself keeps the backdoor out, but drifts.
Leaving out the images that the infected network alone gives to a suspected class, or distilling
them from the student, was not enough; so every image's logits of the suspected classes are taken
from the student that the round before left (`overrule` in `PurifySettings`;
``benchmarks/studies/ablations.py`` switches it off).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from edgeclean.backdoor.bank import Bank
from edgeclean.backdoor.gradient import Evidence, logits_of
from edgeclean.backdoor.population import Population, TargetedTrigger
from edgeclean.images.augment import augmented, mixed
from edgeclean.networks.autocast import device_of, mixed_precision
from edgeclean.networks.batching import images_in_a_part, images_shown
from edgeclean.networks.distillation import OutputDistance, Overruled, logit_variance
from edgeclean.networks.features import (
    UNIT_IMAGES,
    Features,
    channel_moments,
    feature_distance,
    feature_scales,
    shared_taps,
)
from edgeclean.networks.finite import require_finite_loss
from edgeclean.networks.folding import folding_norms, inference_copy
from edgeclean.settings import Settings, setting

MOST_RATE = 10  # of SGD, far above any that teaches a network something


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnSettings(Settings):
    """The length of one round of unlearning, and the balance of its two halves.

    Attributes:
        steps: descent steps of the student.
        batch_size: images in a descent step, beside their stamped copies.
        stamped_share: the share of the batch that is also shown stamped.
        bank_share: the share of stamped images that carry a random candidate of the bank instead.
        learning_rate: the rate of the student's SGD (momentum 0.9), warmed up, then falling on a
            cosine; damped for kernels that a BatchNorm multiplies (`networks.folding`), so that
            channels that died stay so.
        ascent_every: descent steps between two turns of the triggers.
        ascent_steps: Adam steps of the triggers in a turn; 0 leaves them as they were found.
        growth: the most that a trigger's cost may grow to, over the cost it was found with.
        compare: the form in which outputs are compared; see `distillation.OutputDistance`.
        feature_weight: the weight of the features' loss beside the outputs', on clean images.
    """

    steps: int = setting(120, at_least=1, at_most=10**6)
    batch_size: int = setting(96, at_least=1, at_most=2**14)
    stamped_share: float = setting(1 / 3, at_least=0, at_most=1)
    bank_share: float = setting(0.2, at_least=0, at_most=1)
    learning_rate: float = setting(0.01, above=0, at_most=MOST_RATE)
    ascent_every: int = setting(4, at_least=1, at_most=10**6)
    ascent_steps: int = setting(3, at_least=0, at_most=10**6)
    growth: float = setting(1.2, at_least=1, at_most=1000)
    compare: Literal["logits", "probabilities"] = "logits"
    feature_weight: float = setting(1.0, at_least=0, at_most=1000)


@dataclass(frozen=True, slots=True)
class UnlearningInputs:
    """The teacher, images and bank of a round.

    Attributes:
        source: the network as it came, a function of pixels whose features are kept; the teacher
            answers by running it.
        teacher: function of pixels whose answers to clean images are kept.
        synthetic: images made from it, three quarters of each batch.
        procedural: images that do not depend on it, one quarter.
        bank: the source of random stamps.
    """

    source: nn.Module
    teacher: nn.Module
    synthetic: Float[Tensor, "n c h w"]
    procedural: Float[Tensor, "m c h w"]
    bank: Bank

    def pixels(self) -> Float[Tensor, "k c h w"]:
        """Return all images, the synthetic ones first."""
        return torch.cat([self.synthetic, self.procedural])


def unlearn(
    student: nn.Module,
    inputs: UnlearningInputs,
    triggers: Sequence[TargetedTrigger],
    settings: UnlearnSettings,
    generator: torch.Generator,
    notify: Callable[[int], None],
) -> nn.Module:
    """Return a copy of ``student`` that answers stamped images as the teacher does unstamped ones.

    Args:
        student: function of pixels, to be copied.
        inputs: teacher, images and bank.
        triggers: triggers to unlearn; with none, only the bank's random candidates are stamped.
        settings: see `UnlearnSettings`.
        generator: the source of every draw.
        notify: called after each step with the steps done.
    """
    learner = copy.deepcopy(student).eval().requires_grad_(True)
    evidence = Evidence(inputs.pixels(), _classes_of(inputs))
    at_once = images_in_a_part(evidence.pixels.shape[1:], learner)
    population = Population(
        triggers,
        evidence,
        ascent_steps=settings.ascent_steps,
        growth=settings.growth,
        at_once=at_once,
    )
    taps = shared_taps(learner, learner) if settings.feature_weight > 0 else []
    with (
        Features(inputs.source, taps) as given,
        folding_norms(learner, inputs.synthetic, damped=True),
        Features(learner, taps) as own,
    ):
        parameters = list(learner.parameters())
        rate, schedule = settings.learning_rate, _warm_cosine(settings.steps)
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        distance, scales = _units(inputs, given, settings, at_once)
        for step in range(settings.steps):
            if settings.ascent_steps and step % settings.ascent_every == 0:
                learner.requires_grad_(False)
                population.ascend(learner, generator)
                own.take()  # those of the ascent
                learner.requires_grad_(True)
            clean, stamped, shown = _drawn(inputs, population, settings, generator)
            optimizer.zero_grad()
            for piece in _microbatches(clean, stamped, shown, at_once):
                loss = _distillation(learner, inputs.teacher, piece, distance)
                kept = feature_distance(own.take(), given.take(), scales, len(piece.clean))
                loss = loss + settings.feature_weight * piece.clean_share * kept.to(loss.device)
                require_finite_loss(loss, "purify")
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            rates.step()
            notify(step + 1)
    return learner.requires_grad_(False)


def overruled(
    inputs: UnlearningInputs, infected: nn.Module, student: nn.Module, suspected: Sequence[int]
) -> UnlearningInputs:
    """Return inputs whose teacher is the infected network, with the student's suspected logits.

    Args:
        inputs: the inputs of the round before.
        infected: function of pixels, for inference.
        student: the student as the round before left it; it is copied.
        suspected: class numbers. `ELSEWHERE`, which is none, leaves the infected network alone:
            an all-to-all backdoor has no class of its own.
    """
    classes = [target for target in suspected if target >= 0]
    if not classes:
        return inputs
    teacher = Overruled(infected, inference_copy(student, inputs.synthetic), classes)
    return replace(inputs, teacher=teacher)


def _drawn(
    inputs: UnlearningInputs,
    population: Population,
    settings: UnlearnSettings,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "m c h w"], Int[Tensor, " m"]]:
    """Draw a batch, its stamped images, and which of the batch those are.

    Where triggers move images of one class alone, as large a share of the stamped images as of the
    triggers is of such classes: of the others nothing is to be unlearned.
    """
    clean = _batch(inputs, settings.batch_size, generator)
    shown = torch.randperm(len(clean), generator=generator)
    shown = shown[: int(len(clean) * settings.stamped_share)]
    if len(sourced := population.of_sources):
        known = torch.rand(len(shown), generator=generator) < population.share_of_sources
        rows = torch.randint(len(sourced), (int(known.sum()),), generator=generator)
        clean[shown[known]] = augmented(sourced[rows], generator)
    stamped = _stamped(clean[shown], population, inputs.bank, settings.bank_share, generator)
    return clean, stamped, shown


def _stamped(
    clean: Float[Tensor, "n c h w"],
    population: Population,
    bank: Bank,
    bank_share: float,
    generator: torch.Generator,
) -> Float[Tensor, "n c h w"]:
    """Stamp images with a trigger of the population, some with a random one of the bank instead."""
    rows = torch.randint(len(bank), (len(clean),), generator=generator)
    random_stamps = bank.stamp(clean, rows)
    if len(population) == 0:
        return random_stamps
    stamped = population.stamp(clean, generator)
    other = torch.rand(len(clean), 1, 1, 1, generator=generator) < bank_share
    return torch.where(other, random_stamps, stamped)


def _batch(
    inputs: UnlearningInputs, size: int, generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Draw a batch: 3/4 synthetic, 1/4 procedural, augmented; half mixed with another image."""
    synthetic, procedural = inputs.synthetic, inputs.procedural
    rows = torch.randint(len(synthetic), (size - size // 4,), generator=generator)
    others = torch.randint(len(procedural), (size // 4,), generator=generator)
    drawn = torch.cat(
        [augmented(synthetic[rows], generator), augmented(procedural[others], generator)]
    )
    return mixed(drawn, generator)


def _units(
    inputs: UnlearningInputs, given: Features, settings: UnlearnSettings, at_once: int
) -> tuple[OutputDistance, dict[str, Tensor]]:
    """Return the distance of outputs, and the scales of features, by some synthetic images."""
    answers, moments = [], []
    with torch.no_grad():
        for part in inputs.synthetic[:UNIT_IMAGES].split(at_once):
            answers.append(logits_of(inputs.teacher, part[None])[0])
            moments.append(channel_moments(given.take()))
    distance = OutputDistance(settings.compare, logit_variance(torch.cat(answers)))
    return distance, feature_scales(moments)


def _classes_of(inputs: UnlearningInputs) -> Int[Tensor, " n"]:
    """Return the class that the teacher gives every image."""
    with torch.no_grad():
        pixels = inputs.pixels()
        batches = pixels.split(images_shown(pixels.shape[1:]))
        return torch.cat([logits_of(inputs.teacher, one[None])[0].argmax(1) for one in batches])


@dataclass(frozen=True, slots=True)
class _Microbatch:
    """Some images of a batch with their stamped copies, and their share of either."""

    clean: Float[Tensor, "n c h w"]
    stamped: Float[Tensor, "m c h w"]
    shown: Int[Tensor, " m"]  # the row among ``clean`` that each stamped one was
    clean_share: float
    stamped_share: float


def _microbatches(
    clean: Float[Tensor, "n c h w"],
    stamped: Float[Tensor, "m c h w"],
    shown: Int[Tensor, " m"],
    at_once: int,
) -> Iterator[_Microbatch]:
    """Split the batch so that each piece fits into memory; the losses add up to the batch's."""
    for own in torch.arange(len(clean)).split(max(1, at_once // 2)):  # each may be stamped as well
        here = torch.isin(shown, own)
        yield _Microbatch(
            clean=clean[own],
            stamped=stamped[here],
            shown=shown[here] - own[0],
            clean_share=len(own) / len(clean),
            stamped_share=int(here.sum()) / max(1, len(stamped)),
        )


def _distillation(
    learner: nn.Module, teacher: nn.Module, piece: _Microbatch, distance: OutputDistance
) -> Float[Tensor, ""]:
    """Return the distance from the teacher's answers to clean images, on clean and stamped ones."""
    device, count = device_of(learner), len(piece.clean)
    both = torch.cat([piece.clean, piece.stamped]).to(device, memory_format=torch.channels_last)
    with mixed_precision(device):
        with torch.no_grad():
            answers = teacher(both[:count]).float()
        outputs = learner(both).float()
    loss = piece.clean_share * distance(outputs[:count], answers)
    if len(piece.stamped) == 0:  # none of these images was drawn
        return loss
    on_stamped = distance(outputs[count:], answers[piece.shown.to(device)])
    return loss + piece.stamped_share * on_stamped


def _warm_cosine(steps: int) -> Callable[[int], float]:
    """Return a schedule: five steps of warm-up, then a cosine down to a tenth."""
    return lambda step: (
        min(1.0, (step + 1) / 5) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
    )
