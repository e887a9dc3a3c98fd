"""What the operations of a network cost so far, against the limits of one image.

By itself, without PyTorch: a process that counts an ONNX graph starts in a third of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgeclean.errors import InputRejectedError
from edgeclean.load.limits import LoadLimits

BLOCK = 16  # channels that oneDNN computes together; of a few, it makes so many in its own copy
DEAR = 4  # a network that takes more than a quarter of a limit is run as seldom as may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one operation takes for one image.

    Attributes:
        outputs: numbers that it puts out.
        macs: multiply-accumulates.
        reads: numbers that it takes in, those of a window once for every place of the window.
        operands: numbers in memory at once: inputs, outputs and what it works on beside them.
    """

    outputs: int
    macs: int = 0
    reads: int = 0
    operands: int = 0


class Bill:
    """The cost of the operations so far."""

    def __init__(self, limits: LoadLimits) -> None:
        self._limits = limits
        self._activations = self._macs = self._reads = 0

    @property
    def is_dear(self) -> bool:
        """Whether so much was taken that it had better not be taken often."""
        limits = self._limits
        return (
            DEAR * self._activations > limits.activations
            or DEAR * self._macs > limits.macs
            or DEAR * self._reads > limits.reads
        )

    def add(self, cost: Cost, where: str) -> None:
        """Add an operation, before it is run.

        Args:
            cost: what it takes.
            where: what is run, in words that begin the message.

        Raises:
            InputRejectedError: a limit is passed.
        """
        self._activations += cost.outputs
        self._macs += cost.macs
        self._reads += cost.reads
        limits = self._limits
        if self._activations > limits.activations or self._macs > limits.macs:
            raise InputRejectedError(
                f"{where} takes {self._activations} activations and {self._macs} "
                "multiply-accumulates before the network has ended; the limits are activations "
                f"{limits.activations} and macs {limits.macs}"
            )
        if self._reads > limits.reads:
            raise InputRejectedError(
                f"{where} makes its operations and their windows read {self._reads} numbers before "
                f"the network has ended; the limit reads is {limits.reads}"
            )
        if cost.operands > limits.operands:
            raise InputRejectedError(
                f"{where} makes one operation hold {cost.operands} numbers of activations at once; "
                f"the limit operands is {limits.operands}"
            )


def convolution_cost(
    images: Sequence[int], weight: Sequence[int], output: Sequence[int], groups: int, swapped: bool
) -> tuple[int, int, int]:
    """Return multiply-accumulates, reads and memory beside its operands, of a convolution.

    Args:
        images: shape [n, channels, ...] of the input.
        weight: shape [out, in of one group, ...]; of a transposed one [in, out of one group, ...].
        output: shape [n, channels, ...].
        groups: the number of groups.
        swapped: whether it is transposed.
    """
    places = images if swapped else output
    macs = math.prod(places) * math.prod(weight[1:])
    # Each number that a window shows is read once for all the outputs of its group.
    filters = max(1, weight[1] if swapped else weight[0] // max(1, groups))
    blocks = sum(
        one[0] * math.prod(one[2:]) * -(-one[1] // BLOCK) * BLOCK for one in (images, output)
    )
    reads = macs // filters
    # Turned round, what all windows show is written down before it is added up.
    return macs, reads, blocks + (reads if swapped else 0)
