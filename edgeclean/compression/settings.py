"""What ranks are chosen for: one goal for the whole network, and what decides between layers.

A file of ranks for single layers: what `RankSettings` takes as overrides and keep.

::

    "layer1.0.conv1" = [8, 6]      # r_out, r_in
    "layer1.0.conv2" = "keep"      # stays one convolution
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeGuard

from edgeclean.compression.factorisation import Ranks
from edgeclean.errors import UsageError
from edgeclean.files.reading import read_small_toml

Measure = Literal["macs", "params"]
Cost = Literal["macs", "params", "latency"]

DEFAULT_RATIO = 2.0
GOALS = ("ratio", "speedup", "latency_budget_ms", "size_budget")
_LEAST_RIDGE = 1e-3  # moments are summed in float32, which settles nothing finer
_WORDS = {
    "measure": ("macs", "params"),
    "sensitivity": ("energy", "output"),
    "factors": ("weights", "activations"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """How small or how fast, counted in what, and what decides between layers.

    Attributes:
        ratio: cost of the whole original network over that of the whole truncated one; >= 1. None
            is 2, where no other goal is set; at most one of the four goals is.
        speedup: latency of the whole original network over that of the truncated one, by a latency
            table; >= 1.
        latency_budget_ms: what the whole truncated network may take by a latency table.
        size_budget: bytes that the ONNX file may have.
        measure: the cost: multiply-accumulates of one image, or parameters.
        rank_multiple: ranks are multiples of this where the layer is wide enough.
        keep: layers that stay as they are.
        overrides: (r_out, r_in) of single layers; a rank equal to the channel count leaves that
            mode whole.
        sensitivity: weigh layers by the energy that their ranks discard, or by how much the
            network's outputs change on synthetic images.
        factors: cut the leading ranks of the weights' decomposition (the slides), or fit the
            factors to what flows through the layer on synthetic images.
        ridge: how far such a fit leans back to the weights; at least 0.001.
        least_gain: a layer is factored only if that saves at least this share of its cost.
        images: synthetic images to measure on, at most; large networks are given fewer.
        time_allowance: with a ratio and a latency table, the share by which the sum of effects may
            grow for a choice that is quicker.
    """

    ratio: float | None = None
    speedup: float | None = None
    latency_budget_ms: float | None = None
    size_budget: int | None = None
    measure: Measure = "macs"
    rank_multiple: int = 1
    keep: tuple[str, ...] = ()
    overrides: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sensitivity: Literal["energy", "output"] = "output"
    factors: Literal["weights", "activations"] = "activations"
    ridge: float = 0.01
    least_gain: float = 0.1
    images: int = 96
    time_allowance: float = 0.1

    def __post_init__(self) -> None:
        """Refuse goals that contradict each other, and values that mean nothing."""
        self._check_goals()
        for option, allowed in _WORDS.items():
            if getattr(self, option) not in allowed:
                raise UsageError(
                    f"{option} {getattr(self, option)!r} is unknown; it is one of "
                    f"{', '.join(allowed)}"
                )
        if self.rank_multiple < 1 or self.images < 1:
            raise UsageError(
                f"rank_multiple is {self.rank_multiple} and images {self.images}; both must be "
                "at least 1"
            )
        if not (_LEAST_RIDGE <= self.ridge < math.inf and 0 <= self.least_gain < 1):
            raise UsageError(
                f"ridge is {self.ridge} and least_gain {self.least_gain}; ridge must be at least "
                f"{_LEAST_RIDGE}, least_gain in [0, 1)"
            )
        if both := sorted(set(self.keep) & set(self.overrides)):
            raise UsageError(f"{both[0]!r} is kept and has ranks of its own; choose one of them")
        if not 0 <= self.time_allowance < math.inf:
            raise UsageError(f"time_allowance is {self.time_allowance}; it must be 0 or more")

    @property
    def needs_table(self) -> bool:
        """Whether the goal is one of time."""
        return self.speedup is not None or self.latency_budget_ms is not None

    @property
    def ratio_or_default(self) -> float:
        """The ratio, where that is the goal."""
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    def _check_goals(self) -> None:
        asked = [name for name in GOALS if getattr(self, name) is not None]
        if len(asked) > 1:
            first, second = (f"--{name.replace('_', '-')}" for name in asked[:2])
            raise UsageError(
                f"{first} and {second} were both asked; a network has one goal: give one of them"
            )
        for name, least in (("ratio", 1), ("speedup", 1), ("latency_budget_ms", 0)):
            goal = getattr(self, name)
            if goal is not None and not (goal >= least and 0 < goal < math.inf):
                word = "1 or more" if least else "above 0"
                raise UsageError(f"--{name.replace('_', '-')} {goal} was asked; it must be {word}")
        if self.size_budget is not None and self.size_budget < 1:
            raise UsageError(
                f"--size-budget {self.size_budget} was asked; it must be 1 byte or more"
            )
        if self.measure != "macs" and asked and asked != ["ratio"]:
            raise UsageError(
                f"--measure {self.measure} is of a ratio; leave it out with "
                f"--{asked[0].replace('_', '-')}"
            )


MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOverrides:
    """What the file says.

    Attributes:
        ranks: (r_out, r_in) by layer.
        keep: layers that stay whole.
    """

    ranks: Mapping[str, Ranks]
    keep: tuple[str, ...]


def read_rank_file(path: Path) -> RankOverrides:
    """Read and check the file; whether its layers exist, `choose_ranks` knows.

    Raises:
        UsageError: the file cannot be read, is over 1 MiB, is not TOML, or an entry is neither two
            whole numbers from 1 nor "keep".
    """
    ranks: dict[str, Ranks] = {}
    keep: list[str] = []
    entries = read_small_toml(path, MAX_FILE_BYTES, hint="a line for a layer is enough")
    for layer, entry in entries.items():
        if entry == "keep":
            keep.append(layer)
        elif _is_ranks(entry):
            ranks[layer] = (entry[0], entry[1])
        else:
            hint = "; write dotted names in quotes" if isinstance(entry, dict) else ""
            raise UsageError(
                f"{path}: {layer[:80]} = {repr(entry)[:80]}; give [r_out, r_in], whole numbers "
                f'from 1, or "keep"{hint}'
            )
    return RankOverrides(ranks=ranks, keep=tuple(keep))


def _is_ranks(entry: object) -> TypeGuard[list[int]]:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and all(type(rank) is int and rank >= 1 for rank in entry)
    )
