"""The triggers that are being unlearned: they follow the network, and are stamped on images.

Source of the following: I-BAU's inner step (Zeng et al., ICLR 2022), for patches, additive
patterns and warps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from edgeclean.backdoor.families import AdditiveFamily, Family, MaskedFamily, WarpFamily
from edgeclean.backdoor.gradient import ANY, Evidence, Slot, class_loss, logits_of
from edgeclean.backdoor.triggers import AdditiveTrigger, MaskedTrigger, Trigger, WarpTrigger
from edgeclean.networks.finite import require_finite_loss

ASCENT_IMAGES = 4  # that each trigger is shown on in a step
_FAMILY_OF: dict[type, type[Family]] = {
    MaskedTrigger: MaskedFamily,
    AdditiveTrigger: AdditiveFamily,
    WarpTrigger: WarpFamily,
}


@dataclass(frozen=True, slots=True)
class TargetedTrigger:
    """A trigger to unlearn, and the class that it led to.

    Attributes:
        trigger: the trigger as it was found.
        target: the class (or `ELSEWHERE`) that it must no longer lead to.
        strongest: the most times as strongly as it was found that it is stamped; at least 1.
        source: the class whose images alone it moved; `ANY` for those of every class.
    """

    trigger: Trigger
    target: int
    strongest: float = 1.0
    source: int = ANY


class Population:
    """The triggers, by family, as they were found and as they have moved since.

    Args:
        triggers: the triggers.
        evidence: images that they follow the network on.
        ascent_steps: Adam steps of each in a turn.
        growth: the most that a cost may grow to, over the cost that it was found with.
        at_once: images that the network is shown at once (`batching`).
    """

    def __init__(
        self,
        triggers: Sequence[TargetedTrigger],
        evidence: Evidence,
        *,
        ascent_steps: int,
        growth: float,
        at_once: int,
    ) -> None:
        self._evidence, self._ascent_steps, self._at_once = evidence, ascent_steps, at_once
        self._groups: list[_Group] = []
        for kind, family in _FAMILY_OF.items():
            members = [item for item in triggers if isinstance(item.trigger, kind)]
            if members:
                self._groups.append(_Group(family, members, evidence, growth))
        moved = torch.isin(evidence.predictions, torch.tensor(self._sources(), dtype=torch.int64))
        self.of_sources = evidence.pixels[moved]  # the images of classes that are moved alone

    def __len__(self) -> int:
        return sum(len(group.targets) for group in self._groups)

    @property
    def share_of_sources(self) -> float:
        """The share of the triggers that move one class alone."""
        every = self._sources()
        return sum(source != ANY for source in every) / max(1, len(every))

    def _sources(self) -> list[int]:
        return [source for group in self._groups for source in group.sources]

    def ascend(self, learner: nn.Module, generator: torch.Generator) -> None:
        """Move every trigger a few steps towards its target."""
        for group in self._groups:
            for _ in range(self._ascent_steps):
                group.step(learner, self._evidence, self._at_once, generator)

    @torch.no_grad()
    def stamp(
        self, pixels: Float[Tensor, "n c h w"], generator: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Stamp each image with one trigger, as found or as moved since (half each), perturbed."""
        owner = torch.randint(len(self), (len(pixels),), generator=generator)
        moved = torch.rand(len(pixels), generator=generator) < 0.5
        stamped, offset = pixels.clone(), 0
        for group in self._groups:
            for family, chosen in ((group.moving, moved), (group.found, ~moved)):
                rows = (owner >= offset) & (owner < offset + len(group.targets)) & chosen
                if bool(rows.any()):
                    slots = owner[rows] - offset
                    once = family.stamp(pixels[rows].unsqueeze(1), slots)[:, 0]
                    most = group.strongest[slots]
                    stamped[rows] = _strengthened(pixels[rows], once, most, generator)
            offset += len(group.targets)
        return _perturbed(pixels, stamped, generator)


class _Group:
    """The triggers of one family."""

    def __init__(
        self,
        family: type[Family],
        members: list[TargetedTrigger],
        evidence: Evidence,
        growth: float,
    ) -> None:
        triggers = [member.trigger for member in members]
        self.found, self.moving = family.around(triggers), family.around(triggers)
        self.targets = torch.tensor([member.target for member in members])
        self.strongest = torch.tensor([member.strongest for member in members])
        self.sources = [member.source for member in members]
        # What such a trigger does is told by images of its source alone, where there are any.
        pools = {
            slot: evidence.usable(Slot(member.target, member.source)).nonzero().flatten()
            for slot, member in enumerate(members)
            if member.source != ANY
        }
        self._pools = {slot: pool for slot, pool in pools.items() if len(pool)}
        self._weight = 100 * self.found.cost_weight()
        self._cap = growth * self.found.cost().detach()
        self._optimizer = torch.optim.Adam(
            self.moving.parameters(), lr=family.learning_rate, betas=(0.5, 0.9)
        )

    def step(
        self, learner: nn.Module, evidence: Evidence, at_once: int, generator: torch.Generator
    ) -> None:
        """Take one Adam step of all triggers of the family; no gradient joins two of them."""
        shape = (len(self.targets), ASCENT_IMAGES)
        drawn = torch.randint(len(evidence.pixels), shape, generator=generator)
        for slot, pool in self._pools.items():
            drawn[slot] = pool[drawn[slot] % len(pool)]
        self._optimizer.zero_grad()
        for slots in torch.arange(len(self.targets)).split(max(1, at_once // ASCENT_IMAGES)):
            rows = drawn[slots]
            logits = logits_of(learner, self.moving.stamp(evidence.pixels[rows], slots))
            loss = class_loss(logits, self.targets[slots], evidence.predictions[rows]).mean(1)
            excess = functional.relu(self.moving.cost() - self._cap)[slots]
            loss = loss + self._weight * excess
            require_finite_loss(loss, "purify")
            loss.sum().backward()
        self._optimizer.step()


def _strengthened(
    clean: Float[Tensor, "n c h w"],
    stamped: Float[Tensor, "n c h w"],
    most: Float[Tensor, " n"],
    generator: torch.Generator,
) -> Float[Tensor, "n c h w"]:
    """Scale each stamp by 1 to ``most``; nothing is drawn where all are 1."""
    if bool((most <= 1).all()):
        return stamped
    gain = 1 + torch.rand(len(most), generator=generator) * (most - 1)
    return (clean + gain.view(-1, 1, 1, 1) * (stamped - clean)).clamp(0, 1)


def _perturbed(
    clean: Float[Tensor, "n c h w"], stamped: Float[Tensor, "n c h w"], generator: torch.Generator
) -> Float[Tensor, "n c h w"]:
    """Perturb stamps: half lose 15 % of their pixels, half change in strength a little.

    What is unlearned is then a neighbourhood of the trigger, not the one point that was found.
    """
    count, channels = clean.shape[:2]

    def half() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < 0.5

    dropped = torch.rand(clean[:, :1].shape, generator=generator) < 0.15
    keep = 1 - (dropped & half()).float()
    gain = torch.randn(count, channels, 1, 1, generator=generator) * 0.15 * half()
    return (clean + (stamped - clean) * keep * (1 + gain)).clamp(0, 1)
