"""Numbers that are not finite end in an error, in the stage that made them.

Weights that are finite may still answer with NaN, and a setting may drive a stage there. Left
alone, such numbers travel: a flow that is NaN reads outside of an image inside PyTorch's native
code, and a comparison with NaN passes gates. So each stage's result is checked before the next
one has it (`runner.Runner`), and each loss before its gradient is taken (`require_finite_loss`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from edgeclean.errors import NotFiniteError

HINT = (
    "float32 does not hold what this network computes, or a setting of this stage is far too large"
)
MAY_BE_INFINITE = ("costs",)  # of a search: what was not found costs infinitely much


def require_finite(state: object, stage: str) -> None:
    """Refuse a state that holds NaN or infinity anywhere.

    Args:
        state: a network, images, a scan's report or a plan: whatever dataclasses, modules,
            tensors and plain containers are made of.
        stage: the stage that made it.

    Raises:
        NotFiniteError: naming the stage and the first such tensor or number.
    """
    for name, value in _numbers(state, ""):
        if isinstance(value, float):
            if not math.isfinite(value):
                raise NotFiniteError(f"{stage}: {name} came out as {value}; {HINT}")
        elif not _all_finite(value):
            bad = int((~torch.isfinite(value)).sum())
            raise NotFiniteError(
                f"{stage}: {bad} of the {value.numel()} numbers of {name} came out as NaN or "
                f"infinite; {HINT}"
            )


def require_finite_loss(loss: Tensor, stage: str) -> None:
    """Refuse a loss before its gradient moves anything.

    Raises:
        NotFiniteError: naming the stage.
    """
    if not _all_finite(loss):
        raise NotFiniteError(f"{stage}: the loss came out as NaN or infinite; {HINT}")


def _all_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())


def _numbers(state: object, name: str) -> Iterator[tuple[str, Tensor | float]]:
    """Yield every floating-point tensor and number in ``state``, by its dotted name."""
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, float):
        yield name, state
    elif isinstance(state, nn.Module):  # buffers that no state dict holds as well
        yield from _inside([*state.named_parameters(), *state.named_buffers()], "")
    elif is_dataclass(state) and not isinstance(state, type):
        inside = [(one.name, getattr(state, one.name)) for one in fields(state)]
        yield from _inside([one for one in inside if one[0] not in MAY_BE_INFINITE], name)
    elif isinstance(state, Mapping):
        yield from _inside([(str(key), entry) for key, entry in state.items()], name)
    elif isinstance(state, Sequence) and not isinstance(state, str | bytes):
        yield from _inside([(str(index), entry) for index, entry in enumerate(state)], name)


def _inside(
    entries: Sequence[tuple[str, object]], name: str
) -> Iterator[tuple[str, Tensor | float]]:
    for key, entry in entries:
        yield from _numbers(entry, f"{name}.{key}" if name else key)
