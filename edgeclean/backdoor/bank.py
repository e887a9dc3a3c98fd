"""A bank of discrete triggers, and the scoring of any bank by forward passes alone.

Gradient searches fail on a network that has just unlearned a trigger: the loss is flat around
its own triggers, so they report nothing while a known patch still works. Published patch triggers
are saturated colours, checkers, stripes and short lines, few enough to try all of them; and one
forward pass gives the success towards every class at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from edgeclean.backdoor.gradient import Evidence
from edgeclean.backdoor.triggers import MaskedTrigger, Trigger
from edgeclean.networks.autocast import device_of, mixed_precision
from edgeclean.networks.batching import images_shown

# (height, width) on a 32x32 image; larger images scale them (`bank_scale`).
SHAPES = ((2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (1, 4), (4, 1), (1, 9), (9, 1), (2, 8), (8, 2))
TEXTURE = 9  # textures are drawn at this size and cut to the shape
STRIDE = 3  # positions between two candidates of a 32x32 image, beside the borders
FORWARD_BATCH = 1024
IN_FULL = 12  # classes of which all are searched; of more, no more work is done than of these
FEWEST_KEPT = 8  # candidates of a class that go on, if any of it do


S = TypeVar("S", bound="Stamps")


@runtime_checkable
class Stamps(Protocol):
    """Triggers that are few enough to try all of them; each is known by its row."""

    def __len__(self) -> int: ...

    def kept(self: S, which: Bool[Tensor, " n"]) -> S:
        """Return the marked ones."""
        ...

    def going_on(self, classes: int) -> tuple[int, int]:
        """Return how many of each class go on to the second, and to the last trial."""
        ...

    def stamp(
        self, pixels: Float[Tensor, "m c h w"], rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m c h w"]:
        """Put ``rows[i]`` on image i."""
        ...

    def trigger(self, row: int, height: int, width: int) -> Trigger:
        """Return one of them as a trigger for images of this size."""
        ...


@dataclass(frozen=True, slots=True)
class Bank:
    """Discrete triggers: textures, and where and how large each is put.

    Rows of ``candidates`` are (height, width, texture, row, column), in pixels but for the texture,
    an index into ``textures``.
    """

    textures: Float[Tensor, "t c k k"]
    candidates: Int[Tensor, "n 5"]

    def __len__(self) -> int:
        return len(self.candidates)

    def drawn(self, count: int, generator: torch.Generator) -> Bank:
        """Draw ``count`` candidates without repetition, or all if there are fewer."""
        chosen = torch.randperm(len(self), generator=generator)[:count]
        return Bank(self.textures, self.candidates[chosen])

    def kept(self, which: Bool[Tensor, " n"]) -> Bank:
        """Return the bank of the marked candidates."""
        return Bank(self.textures, self.candidates[which])

    def going_on(self, classes: int) -> tuple[int, int]:
        """See `Stamps.going_on`."""
        return max(64, len(self) // (10 * classes)), 48

    def masks_and_patterns(
        self, rows: Int[Tensor, " m"], height: int, width: int
    ) -> tuple[Float[Tensor, "m 1 h w"], Float[Tensor, "m c h w"]]:
        """Return candidates ``rows`` as full-size masks and patterns."""
        tall, wide, texture, top, left = self.candidates[rows].T[..., None, None]
        down = torch.arange(height).view(1, -1, 1) - top
        right = torch.arange(width).view(1, 1, -1) - left
        inside = (down >= 0) & (down < tall) & (right >= 0) & (right < wide)
        scale = bank_scale(height, width)
        size = self.textures.shape[-1]
        index = down.div(scale).floor().long().clamp(0, size - 1) * size
        index = index + right.div(scale).floor().long().clamp(0, size - 1)
        flat = self.textures[texture.flatten()].flatten(2)
        index = index.flatten(1).unsqueeze(1).expand(-1, flat.shape[1], -1)
        pattern = flat.gather(2, index).unflatten(2, (height, width))
        return inside.unsqueeze(1).float(), pattern

    def stamp(
        self, pixels: Float[Tensor, "m c h w"], rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m c h w"]:
        """Put candidate ``rows[i]`` on image i."""
        mask, pattern = self.masks_and_patterns(rows, *pixels.shape[-2:])
        return torch.where(mask > 0, pattern, pixels)

    def trigger(self, row: int, height: int, width: int) -> MaskedTrigger:
        """Return one candidate as a trigger."""
        mask, pattern = self.masks_and_patterns(torch.tensor([row]), height, width)
        return MaskedTrigger(mask[0], pattern[0])


def build_bank(shape: tuple[int, int, int], generator: torch.Generator) -> Bank:
    """Build all textures at all sizes and positions for images of ``shape`` (c, h, w)."""
    channels, height, width = shape
    textures = _textures(channels, generator)
    scale = bank_scale(height, width)
    stride = round(STRIDE * scale)
    rows = [
        (tall, wide, texture, top, left)
        for tall, wide in ((round(tall * scale), round(wide * scale)) for tall, wide in SHAPES)
        for texture in range(len(textures))
        for top in _positions(height, tall, stride)
        for left in _positions(width, wide, stride)
    ]
    return Bank(textures, torch.tensor(rows, dtype=torch.int64).view(-1, 5))


@dataclass(frozen=True, slots=True)
class BankScore(Generic[S]):
    """The best candidates, and what each does to the images that it was tried on.

    Attributes:
        bank: the candidates.
        success: the share sent to each class, of the images that were not of it.
        moved: the share of all images that is sent to any class but its own.
    """

    bank: S
    success: Float[Tensor, "n classes"]
    moved: Float[Tensor, " n"]


@torch.no_grad()
def score_bank(
    module: nn.Module,
    evidence: Evidence,
    bank: S,
    classes: int,
    generator: torch.Generator,
    *,
    asked: Sequence[int] = (),
) -> BankScore[S]:
    """Halve successively: try all candidates on 4 images, the better on 12, the best on 32.

    Every forward pass tells of all classes, and no more of them are made for a thousand than for
    twelve (`leaders`).

    Args:
        module: a function of pixels for inference.
        evidence: images with the module's predictions.
        bank: the candidates.
        classes: the number of classes.
        generator: the source of the images that each candidate is tried on.
        asked: classes whose candidates go on, however many others are reached better.
    """
    best = bank
    for images, keep in zip((4, 12), bank.going_on(classes), strict=True):
        score = _score(module, evidence, best, classes, images, generator)
        best = best.kept(leaders(score, keep, asked))
    return _score(module, evidence, best, classes, 32, generator)


def _score(
    module: nn.Module,
    evidence: Evidence,
    bank: S,
    classes: int,
    images: int,
    generator: torch.Generator,
) -> BankScore[S]:
    device = device_of(module)
    at_once = images_shown(evidence.pixels.shape[1:], FORWARD_BATCH)
    hits, tries = torch.zeros(len(bank), classes), torch.zeros(len(bank), classes)
    for _ in range(images):
        for rows in torch.arange(len(bank)).split(at_once):
            chosen = torch.randint(len(evidence.pixels), (len(rows),), generator=generator)
            stamped = bank.stamp(evidence.pixels[chosen], rows)
            stamped = stamped.to(device, memory_format=torch.channels_last)
            with mixed_precision(device):
                after = module(stamped).argmax(1).cpu()
            before = evidence.predictions[chosen]
            moved = after != before
            hits[rows[moved], after[moved]] += 1
            tries[rows] += 1
            tries[rows, before] -= 1
    return BankScore(bank, hits / tries.clamp_min(1), hits.sum(1) / images)


def leaders(score: BankScore[S], keep: int, asked: Sequence[int] = ()) -> Bool[Tensor, " n"]:
    """Mark the ``keep`` best of every class, and those that move most images anywhere.

    The latter are ranked by the sum of their shares, in which a class of few images weighs as much
    as one of many. Of more than twelve classes, as many candidates go on as of twelve: fewer of
    each class, and of those classes whose best candidate stands out most from the others. A class
    that any stamp leads to is no discovery.

    Args:
        score: what each candidate did.
        keep: candidates of each of twelve classes that go on.
        asked: classes that are among those, whatever their candidates did.
    """
    chosen = torch.zeros(len(score.bank), dtype=torch.bool)
    moving = score.success.sum(1, keepdim=True)
    if score.success.shape[1] <= IN_FULL:
        rates = torch.cat([score.success, moving], 1)
        chosen[rates.topk(min(keep, len(rates)), dim=0).indices.flatten()] = True
        return chosen
    each = max(FEWEST_KEPT, IN_FULL * keep // score.success.shape[1])
    contrast = score.success.amax(0) - score.success.mean(0)
    contrast[list(asked)] = torch.inf
    reached = contrast.topk(min(len(contrast), IN_FULL * keep // each)).indices
    for rates, most in ((score.success[:, reached], each), (moving, keep)):
        chosen[rates.topk(min(most, len(rates)), dim=0).indices.flatten()] = True
    return chosen


def _textures(channels: int, generator: torch.Generator) -> Float[Tensor, "t c k k"]:
    size = (channels, TEXTURE, TEXTURE)
    corners = min(2**channels, 16)  # every fully saturated colour of up to four channels
    bits = [[(colour >> bit) & 1 for bit in range(channels)] for colour in range(corners)]
    textures = [torch.tensor(b, dtype=torch.float32).view(-1, 1, 1).expand(size) for b in bits]
    down, right = torch.meshgrid(torch.arange(TEXTURE), torch.arange(TEXTURE), indexing="ij")
    for parity in (down + right, down, right, down // 2 + right // 2):
        textures += [((parity + phase) % 2).float().expand(size) for phase in (0, 1)]
    textures += [torch.rand(size, generator=generator).round() for _ in range(6)]
    textures += [torch.rand(size[1:], generator=generator).round().expand(size) for _ in range(4)]
    textures += [torch.rand(channels, 1, 1, generator=generator).expand(size) for _ in range(4)]
    return torch.stack(textures)


def _positions(length: int, size: int, stride: int) -> list[int]:
    """Return every ``stride``-th place and, always, the last and the last but one at the border."""
    last = length - size
    if last < 0:
        return []
    return sorted({*range(0, last + 1, stride), last, max(0, last - stride // 3)})


def bank_scale(height: int, width: int) -> float:
    """Return how many pixels of an image stand for one of a 32x32 image; at least 1.

    It is the shorter side that decides: a square that is a tenth of it fits wherever it is put.
    """
    return max(1.0, min(height, width) / 32)
