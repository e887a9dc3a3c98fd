"""Unlearn triggers while they adapt: a small minimax game on synthetic images.

A network that only unlearns the triggers it is shown tends to keep the true one
(``benchmarks/ablations.py`` measures it); so every trigger follows the network, a few gradient
steps at a time. Both halves:

* ascent: every trigger moves to send images to its target again, and may not grow past its cap;
* descent: the student gives a stamped image the *teacher's* answer for the image without it.

Source: the alternation of I-BAU (Zeng et al., ICLR 2022), with patch, additive and warp families
instead of one additive perturbation, on synthetic and procedural images, distilled not labelled.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.distil import Likeness, logit_variance
from edgeclean.frozen import folding_norms
from edgeclean.precision import device_of, mixed_precision
from edgeclean.scan.bank import Bank
from edgeclean.scan.families import AdditiveFamily, Family, MaskedFamily, WarpFamily
from edgeclean.scan.gradient import Evidence, class_loss, logits_of
from edgeclean.scan.triggers import AdditiveTrigger, MaskedTrigger, Trigger, WarpTrigger
from edgeclean.synthesis.augment import augmented, mixed

_FAMILY_OF: dict[type, type[Family]] = {
    MaskedTrigger: MaskedFamily,
    AdditiveTrigger: AdditiveFamily,
    WarpTrigger: WarpFamily,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlearnSettings:
    """The game's length and balance.

    Attributes:
        steps: descent steps of the student.
        batch_size: images in a descent step, beside their stamped copies.
        stamped_share: of the batch that is also shown stamped.
        bank_share: of the stamped images that carry a random candidate of the bank instead.
        learning_rate: of the student's SGD (momentum 0.9), warmed up, then falling on a cosine.
        ascent_every: descent steps between two turns of the triggers.
        ascent_steps: Adam steps of the triggers in a turn; 0 leaves them as they were found.
        growth: how far a trigger's cost may grow past what it was found with, at least.
        compare: what the student's outputs are compared by; see `distil.Likeness`.
    """

    steps: int = 120
    batch_size: int = 96
    stamped_share: float = 1 / 3
    bank_share: float = 0.2
    learning_rate: float = 0.01
    ascent_every: int = 4
    ascent_steps: int = 3
    growth: float = 1.2
    compare: Literal["logits", "probabilities"] = "logits"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A trigger to unlearn, and the class (or `ELSEWHERE`) that it must no longer lead to.

    It may grow to a cost of ``room`` while it adapts, or by `UnlearnSettings.growth`, whichever
    is more.
    """

    trigger: Trigger
    target: int
    room: float = 0.0


@dataclass(frozen=True, slots=True)
class Ground:
    """What every round is played on.

    Attributes:
        teacher: function of pixels whose answers to clean images are kept.
        synthetic: images made from it, three quarters of each batch.
        procedural: images that know nothing of it, one quarter.
        bank: where random stamps come from.
    """

    teacher: nn.Module
    synthetic: Float[Tensor, "n c h w"]
    procedural: Float[Tensor, "m c h w"]
    bank: Bank

    def pixels(self) -> Float[Tensor, "k c h w"]:
        """All images."""
        return torch.cat([self.synthetic, self.procedural])


def unlearn(
    student: nn.Module,
    ground: Ground,
    wanted: Sequence[Wanted],
    settings: UnlearnSettings,
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> nn.Module:
    """A copy of ``student`` that answers stamped images as ``teacher`` answers unstamped ones.

    Args:
        student: function of pixels, to be copied.
        ground: teacher, images and bank.
        wanted: triggers to unlearn; with none, only the bank's random candidates are stamped.
        settings: see `UnlearnSettings`.
        generator: of every draw.
        tell: called after each step with the steps done.
    """
    learner = copy.deepcopy(student).eval().requires_grad_(True)
    parameters = list(learner.parameters())
    optimizer = torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(settings.steps))
    population = _Population(wanted, settings, Evidence(ground.pixels(), _classes_of(ground)))
    likeness = Likeness(settings.compare, logit_variance(_answers(ground)))
    with folding_norms(learner, ground.synthetic):
        for step in range(settings.steps):
            if settings.ascent_steps and step % settings.ascent_every == 0:
                learner.requires_grad_(False)
                population.ascend(learner, generator)
                learner.requires_grad_(True)
            clean = _batch(ground, settings.batch_size, generator)
            shown = torch.randperm(len(clean), generator=generator)
            shown = shown[: int(len(clean) * settings.stamped_share)]
            stamped = _stamped(
                clean[shown], population, ground.bank, settings.bank_share, generator
            )
            loss = _distillation(learner, ground.teacher, clean, stamped, shown, likeness)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            tell(step + 1)
    return learner.requires_grad_(False)


class _Population:
    """The triggers, by family, as they were found and as they have moved since."""

    def __init__(
        self, wanted: Sequence[Wanted], settings: UnlearnSettings, evidence: Evidence
    ) -> None:
        self._settings, self._evidence = settings, evidence
        self._groups: list[_Group] = []
        for kind, family in _FAMILY_OF.items():
            members = [item for item in wanted if isinstance(item.trigger, kind)]
            if members:
                self._groups.append(_Group(family, members, settings.growth))

    def __len__(self) -> int:
        return sum(len(group.targets) for group in self._groups)

    def ascend(self, learner: nn.Module, generator: torch.Generator) -> None:
        """Every trigger a few steps towards its target, on four images each a step."""
        for group in self._groups:
            for _ in range(self._settings.ascent_steps):
                group.step(learner, self._evidence, generator)

    @torch.no_grad()
    def stamp(
        self, pixels: Float[Tensor, "n c h w"], generator: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Each image with one trigger: half as found, half as it stands, roughened a little."""
        owner = torch.randint(len(self), (len(pixels),), generator=generator)
        moved = torch.rand(len(pixels), generator=generator) < 0.5
        stamped, offset = pixels.clone(), 0
        for group in self._groups:
            for family, chosen in ((group.moving, moved), (group.found, ~moved)):
                rows = (owner >= offset) & (owner < offset + len(group.targets)) & chosen
                if bool(rows.any()):
                    slots = owner[rows] - offset
                    stamped[rows] = family.stamp(pixels[rows].unsqueeze(1), slots)[:, 0]
            offset += len(group.targets)
        return _roughened(pixels, stamped, generator)


class _Group:
    """The triggers of one family."""

    def __init__(self, family: type[Family], members: list[Wanted], growth: float) -> None:
        triggers = [member.trigger for member in members]
        self.found, self.moving = family.around(triggers), family.around(triggers)
        self.targets = torch.tensor([member.target for member in members])
        self._weight = 100 * family.weight
        room = torch.tensor([member.room for member in members])
        self._cap = torch.maximum(growth * self.found.cost().detach(), room)
        self._optimizer = torch.optim.Adam(
            self.moving.parameters(), lr=family.learning_rate, betas=(0.5, 0.9)
        )

    def step(self, learner: nn.Module, evidence: Evidence, generator: torch.Generator) -> None:
        """One Adam step of all triggers of the family."""
        shape = (len(self.targets), 4)
        rows = torch.randint(len(evidence.pixels), shape, generator=generator)
        logits = logits_of(learner, self.moving.stamp(evidence.pixels[rows]))
        loss = class_loss(logits, self.targets, evidence.predictions[rows]).mean(1).sum()
        excess = functional.relu(self.moving.cost() - self._cap).sum()
        self._optimizer.zero_grad()
        (loss + self._weight * excess).backward()
        self._optimizer.step()


def _stamped(
    clean: Float[Tensor, "n c h w"],
    population: _Population,
    bank: Bank,
    bank_share: float,
    generator: torch.Generator,
) -> Float[Tensor, "n c h w"]:
    """Images with a trigger of the population, some with a random one of the bank instead."""
    rows = torch.randint(len(bank), (len(clean),), generator=generator)
    random_stamps = bank.stamp(clean, rows)
    if len(population) == 0:
        return random_stamps
    stamped = population.stamp(clean, generator)
    other = torch.rand(len(clean), 1, 1, 1, generator=generator) < bank_share
    return torch.where(other, random_stamps, stamped)


def _roughened(
    clean: Float[Tensor, "n c h w"], stamped: Float[Tensor, "n c h w"], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Half of the stamps lose 15 % of their pixels, and half change in strength a little.

    What is unlearned is then a neighbourhood of the trigger, not the one point that was found.
    """
    count, channels = clean.shape[:2]

    def half() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < 0.5

    dropped = torch.rand(clean[:, :1].shape, generator=generator) < 0.15
    keep = 1 - (dropped & half()).float()
    gain = torch.randn(count, channels, 1, 1, generator=generator) * 0.15 * half()
    return (clean + (stamped - clean) * keep * (1 + gain)).clamp(0, 1)


def _batch(ground: Ground, size: int, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
    """Three quarters synthetic, one procedural, augmented; half of them mixed with another."""
    synthetic, procedural = ground.synthetic, ground.procedural
    rows = torch.randint(len(synthetic), (size - size // 4,), generator=generator)
    others = torch.randint(len(procedural), (size // 4,), generator=generator)
    drawn = torch.cat(
        [augmented(synthetic[rows], generator), augmented(procedural[others], generator)]
    )
    return mixed(drawn, generator)


def _answers(ground: Ground) -> Float[Tensor, "n k"]:
    """The teacher's logits of some synthetic images."""
    with torch.no_grad():
        return logits_of(ground.teacher, ground.synthetic[None, :256])[0]


def _classes_of(ground: Ground) -> Int[Tensor, " n"]:
    """What the teacher says of every image."""
    with torch.no_grad():
        batches = ground.pixels().split(256)
        return torch.cat([logits_of(ground.teacher, one[None])[0].argmax(1) for one in batches])


def _distillation(
    learner: nn.Module,
    teacher: nn.Module,
    clean: Float[Tensor, "n c h w"],
    stamped: Float[Tensor, "m c h w"],
    shown: Int[Tensor, " m"],
    likeness: Likeness,
) -> Float[Tensor, ""]:
    """Distance from the teacher's answers to the clean images, clean and stamped alike."""
    device = device_of(learner)
    both = torch.cat([clean, stamped]).to(device, memory_format=torch.channels_last)
    with mixed_precision(device):
        with torch.no_grad():
            answers = teacher(both[: len(clean)]).float()
        outputs = learner(both).float()
    on_clean = likeness(outputs[: len(clean)], answers)
    return on_clean + likeness(outputs[len(clean) :], answers[shown.to(device)])


def _warm_cosine(steps: int) -> Callable[[int], float]:
    """Five steps up, then a cosine down to a tenth."""
    return lambda step: (
        min(1.0, (step + 1) / 5) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
    )
