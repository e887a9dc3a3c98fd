"""Families of triggers for gradient search: many slots of one family, optimised together.

A slot is one hypothesis, "these images can be sent to that class". All slots of a family share
one forward pass, so a hundred classes cost a larger batch and not a hundred searches. The same
families serve the unlearning, where each slot follows one trigger while the network changes.

What is counted in pixels is a share of the image, given as pixels of a 32x32 one (`areas`,
`sides`): a patch over a hundredth of the image weighs the same at every size, and so does a warp by
a hundredth of its side. An image that is not square counts as the square of its area, so that a
side squared is an area.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from edgeclean.backdoor.triggers import AdditiveTrigger, MaskedTrigger, Trigger, WarpTrigger, warp

SIDE = 32  # of the images that constants in pixels are given for


def areas(height: int, width: int) -> float:
    """Return how many pixels of an image are as large a share of it as one of a 32x32 image."""
    return height * width / SIDE**2


def sides(height: int, width: int) -> float:
    """Return how many pixels are as large a share of the side as one of a 32x32 image's."""
    return math.sqrt(areas(height, width))


class Family(ABC):
    """Parameters of ``slots`` triggers, their stamped images and their costs."""

    name: str
    sees: str
    blind_to: str
    cost_unit: str
    strengthens: bool  # whether a stamp of twice the cost changes an image twice as much
    weight: float  # the first weight of the cost beside the class loss, for a 32x32 image
    learning_rate: float  # of Adam on `parameters`

    @abstractmethod
    def __init__(
        self, slots: int, shape: tuple[int, int, int], generator: torch.Generator
    ) -> None: ...

    @classmethod
    @abstractmethod
    def around(cls, triggers: Sequence[Trigger]) -> Family:
        """Return a family with one slot at each of these triggers, which must be of this family."""

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Return the tensors to optimise; the first dimension of each is the slot."""

    @abstractmethod
    def stamp(
        self, images: Float[Tensor, "k b c h w"], slots: Int[Tensor, " k"] | None = None
    ) -> Float[Tensor, "k b c h w"]:
        """Stamp row i of the images with the trigger of slot i, or of ``slots[i]``."""

    @abstractmethod
    def cost(self) -> Float[Tensor, " k"]:
        """Return the size of each slot's trigger, in ``cost_unit``."""

    @abstractmethod
    def trigger(self, slot: int) -> Trigger:
        """Return a copy of one slot's present trigger."""

    def cost_weight(self) -> float:
        """Return `weight` for a cost in ``cost_unit`` of images of this size."""
        return self.weight


class MaskedFamily(Family):
    """One mask and one pattern per slot; the cost is the mask's L1 norm (Neural Cleanse)."""

    name = "masked patch"
    sees = "a patch, sticker or sparse set of pixels at one place, any colours"
    blind_to = "triggers over the whole image, warps, and triggers that differ from image to image"
    cost_unit = "pixels"
    strengthens = False
    weight = 1e-3
    learning_rate = 0.15

    def __init__(self, slots: int, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        channels, height, width = shape
        self._mask = 0.3 * torch.randn(slots, 1, height, width, generator=generator) - 1.5
        self._pattern = torch.randn(slots, channels, height, width, generator=generator)

    @classmethod
    def around(cls, triggers: Sequence[Trigger]) -> MaskedFamily:
        """See `Family.around`."""
        family = cls.__new__(cls)
        masks = torch.stack([t.mask for t in triggers if isinstance(t, MaskedTrigger)])
        patterns = torch.stack([t.pattern for t in triggers if isinstance(t, MaskedTrigger)])
        # Binary masks and saturated colours lie at infinity; these bounds keep a gradient alive.
        family._mask = torch.logit(masks.clamp(0.01, 0.99)) / 2
        family._pattern = torch.logit(patterns.clamp(0.02, 0.98)) / 2
        return family

    def parameters(self) -> list[Tensor]:
        """See `Family.parameters`."""
        return [self._mask.requires_grad_(), self._pattern.requires_grad_()]

    def _values(self) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(2 * self._mask), torch.sigmoid(2 * self._pattern)

    def stamp(
        self, images: Float[Tensor, "k b c h w"], slots: Int[Tensor, " k"] | None = None
    ) -> Float[Tensor, "k b c h w"]:
        """See `Family.stamp`."""
        mask, pattern = (_chosen(value, slots).unsqueeze(1) for value in self._values())
        return images * (1 - mask) + pattern * mask

    def cost(self) -> Float[Tensor, " k"]:
        """See `Family.cost`."""
        return self._values()[0].sum((1, 2, 3))

    def trigger(self, slot: int) -> MaskedTrigger:
        """See `Family.trigger`."""
        mask, pattern = self._values()
        return MaskedTrigger(mask[slot].detach().clone(), pattern[slot].detach().clone())

    def cost_weight(self) -> float:
        """See `Family.cost_weight`: the cost is an area."""
        height, width = self._mask.shape[-2:]
        return self.weight / areas(height, width)


class AdditiveFamily(Family):
    """One delta per slot, added to every image; the cost is its root mean square in grey levels."""

    name = "additive"
    sees = "noise, low-frequency patterns and blends that add the same, and little, to every image"
    blind_to = (
        "small bright patches (their root mean square is not small), warps, and patterns as strong "
        "as those that lead a harmless network to other classes, such as sine stripes (SIG), for "
        "which there are the gratings"
    )
    cost_unit = "grey levels (of 255), root mean square"
    strengthens = True
    weight = 0.02
    learning_rate = 0.005  # in pixel units: about one grey level a step

    def __init__(self, slots: int, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        self._delta = 0.02 * torch.randn(slots, *shape, generator=generator)

    @classmethod
    def around(cls, triggers: Sequence[Trigger]) -> AdditiveFamily:
        """See `Family.around`."""
        family = cls.__new__(cls)
        deltas = [t.delta for t in triggers if isinstance(t, AdditiveTrigger)]
        family._delta = torch.stack(deltas).clone()
        return family

    def parameters(self) -> list[Tensor]:
        """See `Family.parameters`."""
        return [self._delta.requires_grad_()]

    def stamp(
        self, images: Float[Tensor, "k b c h w"], slots: Int[Tensor, " k"] | None = None
    ) -> Float[Tensor, "k b c h w"]:
        """See `Family.stamp`."""
        return (images + _chosen(self._delta, slots).unsqueeze(1)).clamp(0, 1)

    def cost(self) -> Float[Tensor, " k"]:
        """See `Family.cost`."""
        return 255 * (self._delta.square().mean((1, 2, 3)) + 1e-8).sqrt()

    def trigger(self, slot: int) -> AdditiveTrigger:
        """See `Family.trigger`."""
        return AdditiveTrigger(self._delta[slot].detach().clone())


class WarpFamily(Family):
    """One smooth flow per slot, from a coarse grid of control points; the cost is in pixels."""

    name = "warp"
    sees = "one small smooth warp of all images (as WaNet's)"
    blind_to = "everything that is no warp, and warps that differ from image to image"
    cost_unit = "pixels of displacement, root mean square"
    strengthens = False
    weight = 0.05
    learning_rate = 0.05
    control_points = 5

    def __init__(self, slots: int, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        self._size = (shape[1], shape[2])
        points = self.control_points  # displacements in `sides`, so that each step is a share too
        self._control = 0.3 * torch.randn(slots, 2, points, points, generator=generator)

    @classmethod
    def around(cls, triggers: Sequence[Trigger]) -> WarpFamily:
        """See `Family.around`."""
        family = cls.__new__(cls)
        controls = [t.control for t in triggers if isinstance(t, WarpTrigger)]
        flow = next(t.flow for t in triggers if isinstance(t, WarpTrigger))
        family._size = (flow.shape[0], flow.shape[1])
        family._control = torch.stack(controls) / sides(*family._size)
        return family

    def parameters(self) -> list[Tensor]:
        """See `Family.parameters`."""
        return [self._control.requires_grad_()]

    def _pixels(self) -> Float[Tensor, "k 2 h w"]:
        control = self._control * sides(*self._size)
        return functional.interpolate(control, size=self._size, mode="bicubic", align_corners=True)

    def _flow(self) -> Float[Tensor, "k h w 2"]:
        height, width = self._size
        unit = torch.tensor([2 / max(1, width - 1), 2 / max(1, height - 1)])
        return self._pixels().permute(0, 2, 3, 1) * unit.to(self._control)

    def stamp(
        self, images: Float[Tensor, "k b c h w"], slots: Int[Tensor, " k"] | None = None
    ) -> Float[Tensor, "k b c h w"]:
        """See `Family.stamp`."""
        rows, batch = images.shape[:2]
        flow = _chosen(self._flow(), slots).unsqueeze(1).expand(-1, batch, -1, -1, -1)
        return warp(images.flatten(0, 1), flow.flatten(0, 1)).view(rows, batch, *images.shape[2:])

    def cost(self) -> Float[Tensor, " k"]:
        """See `Family.cost`."""
        return (self._pixels().square().sum(1).mean((1, 2)) + 1e-8).sqrt()

    def trigger(self, slot: int) -> WarpTrigger:
        """See `Family.trigger`."""
        flow, control = self._flow()[slot], self._control[slot] * sides(*self._size)
        return WarpTrigger(flow.detach().clone(), control.detach().clone())

    def cost_weight(self) -> float:
        """See `Family.cost_weight`: the cost is a length."""
        return self.weight / sides(*self._size)


FAMILIES: dict[str, type[Family]] = {
    family.name: family for family in (MaskedFamily, AdditiveFamily, WarpFamily)
}


def _chosen(values: Tensor, slots: Int[Tensor, " k"] | None) -> Tensor:
    return values if slots is None else values[slots]
