"""A bank of sine gratings: stripes over the whole image, scored by forward passes alone.

SIG (Barni et al. 2019) adds stripes of a tenth of the pixel range and more. A gradient search for
additive stamps does not find them: some universal perturbation towards *every* class is far weaker,
so the stripes' class is no cheaper than the others. Within the small family of plain gratings it
stands out, because one of them leads there and none leads anywhere else.

Periods shorter than `SHORTEST_PERIOD` are left out: near the Nyquist limit stripes make harmless
networks collapse to one class as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edgeclean.backdoor.triggers import AdditiveTrigger

MOST_CYCLES = 9  # over a side of the image
SHORTEST_PERIOD = 3.5  # pixels
PHASES = 4  # quarters of a period; two of them are the negatives of the others
AMPLITUDE = 40  # grey levels of 255
MOST_GRATINGS = 4 * MOST_CYCLES * PHASES * 4  # of a colour image with room for all periods
KEPT = (32, 16)  # candidates of each class that go on to the second and to the last trial


@dataclass(frozen=True, slots=True)
class Gratings:
    """Additive stripes AMPLITUDE / 255 sin(2 pi (cycles . x + phase)), x in shares of the sides.

    Rows of ``candidates`` are (cycles down the image, cycles to the right, phase in quarters of a
    period, channel); a channel equal to ``channels`` stands for all of them alike.
    """

    channels: int
    candidates: Int[Tensor, "n 4"]

    def __len__(self) -> int:
        return len(self.candidates)

    def kept(self, which: Bool[Tensor, " n"]) -> Gratings:
        """Return the bank of the marked candidates."""
        return Gratings(self.channels, self.candidates[which])

    def going_on(self, classes: int) -> tuple[int, int]:
        """See `bank.Stamps.going_on`: the same few for any number of classes."""
        del classes
        return KEPT

    def deltas(self, rows: Int[Tensor, " m"], height: int, width: int) -> Float[Tensor, "m c h w"]:
        """Return what candidates ``rows`` add to an image, in shares of the pixel range."""
        cycles_down, cycles_right, phase, channel = self.candidates[rows].T[..., None, None]
        down = torch.arange(height).view(1, -1, 1) / height
        right = torch.arange(width).view(1, 1, -1) / width
        turns = cycles_down * down + cycles_right * right + phase / PHASES
        wave = AMPLITUDE / 255 * torch.sin(2 * math.pi * turns)
        own = torch.arange(self.channels).view(1, -1, 1)
        coloured = ((channel == self.channels) | (channel == own)).unsqueeze(3)
        return torch.where(coloured, wave.unsqueeze(1), 0.0)

    def stamp(
        self, pixels: Float[Tensor, "m c h w"], rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "m c h w"]:
        """Add candidate ``rows[i]`` to image i, within [0, 1]."""
        height, width = pixels.shape[-2:]
        return (pixels + self.deltas(rows, height, width)).clamp(0, 1)

    def trigger(self, row: int, height: int, width: int) -> AdditiveTrigger:
        """Return one candidate as a trigger."""
        return AdditiveTrigger(self.deltas(torch.tensor([row]), height, width)[0])


def build_gratings(shape: tuple[int, int, int]) -> Gratings:
    """Build vertical, horizontal and both diagonal gratings for images of ``shape`` (c, h, w).

    Cycles are whole numbers over a side, so that they are shares of the image; a diagonal has as
    many over either side. Where no period is long enough, as in images of a few pixels, there are
    none.
    """
    channels, height, width = shape
    waves = [
        (down * cycles, right * cycles)
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1))
        for cycles in range(1, MOST_CYCLES + 1)
        if math.hypot(down * cycles / height, right * cycles / width) <= 1 / SHORTEST_PERIOD
    ]
    single = range(channels) if channels > 1 else ()
    rows = [
        (*wave, phase, channel)
        for wave in waves
        for phase in range(PHASES)
        for channel in (channels, *single)
    ]
    return Gratings(channels, torch.tensor(rows, dtype=torch.int64).view(-1, 4))
