"""What ranks are chosen for: one goal for the whole network, and what decides between layers.

A file of ranks for single layers: what `RankSettings` takes as overrides and keep.

::

    "layer1.0.conv1" = [8, 6]            # r_out, r_in
    "layer1.0.conv2" = ["vertical", 12]  # Kx1 to 12 channels, then 1xK; or "horizontal"
    "layer1.1.conv1" = "keep"            # stays one convolution
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeGuard

from edgeclean.compression.factorisation import AXES, Axis, Ranks, ranks_from
from edgeclean.errors import UsageError
from edgeclean.files.reading import read_small_toml
from edgeclean.files.text import printable, shown
from edgeclean.settings import Settings, setting

Measure = Literal["macs", "params"]
Cost = Literal["macs", "params", "latency"]
Form = Literal["tucker", "hidden", "separable", "resolution"]
OF_LAYERS: tuple[Form, ...] = ("tucker", "hidden", "separable")  # put no operator but Conv in

DEFAULT_RATIO = 2.0
GOALS = ("ratio", "keep_accuracy", "speedup", "latency_budget_ms", "size_budget")
SEARCHED_RATIOS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)  # to keep an accuracy
LEAST_RIDGE = 1e-3  # moments are summed in float32, which settles nothing finer
MOST_RANK = 2**20  # no convolution that is loaded has as many channels
MOST_LAYERS = 20_000
MOST_LAYER_NAME = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings(Settings):
    """How small or how fast, counted in what, and what decides between layers.

    Attributes:
        ratio: cost of the whole original network over that of the whole truncated one; >= 1. None
            is 2, where no other goal is set; at most one of the five goals is.
        keep_accuracy: percentage points of accuracy that a forecast may expect to be lost, for the
            largest ratio that keeps within (`edgeclean.accuracy_goal`).
        speedup: latency of the whole original network over that of the truncated one, by a latency
            table; >= 1.
        latency_budget_ms: what the whole truncated network may take by a latency table.
        size_budget: bytes that the ONNX file may have.
        measure: the cost: multiply-accumulates of one image, or parameters.
        rank_multiple: ranks are multiples of this where the layer is wide enough.
        forms: what layers may become: low-rank factors (the slides), fewer of the channels that
            one convolution makes and one layer reads, and a Kx1 and a 1xK convolution; by
            ``resolution`` the whole network may see its images smaller (`compression.resolution`).
            None is all that serve the goal: ``resolution`` is among them for a ratio of
            multiply-accumulates alone, and where no latency table decides.
        keep: layers that stay as they are.
        overrides: (r_out, r_in) of single layers, where a rank equal to the channel count leaves
            that mode whole; or of a separable kernel the direction of the first convolution, and
            the channels between the two.
        sensitivity: weigh layers by the energy that their ranks discard, or by how much the
            network's outputs change on synthetic images.
        factors: cut the leading ranks of the weights' decomposition (the slides), or fit the
            factors to what flows through the layer on synthetic images.
        ridge: how far such a fit leans back to the weights; at least 0.001.
        least_gain: a layer is factored only if that saves at least this share of its cost.
        images: synthetic images to fit layers to, and as many others to measure on, at most; large
            networks are given fewer, and one that is a list of steps fits to four times as many.
        time_allowance: with a ratio and a latency table, the share by which the sum of effects may
            grow for a choice that is quicker.
    """

    ratio: float | None = setting(None, at_least=1, at_most=10**6)
    keep_accuracy: float | None = setting(None, above=0, at_most=100)
    speedup: float | None = setting(None, at_least=1, at_most=10**6)
    latency_budget_ms: float | None = setting(None, above=0, at_most=10**9)
    size_budget: int | None = setting(None, at_least=1, at_most=2**63 - 1)
    measure: Measure = "macs"
    rank_multiple: int = setting(1, at_least=1, at_most=MOST_RANK)
    forms: tuple[Form, ...] | None = setting(None, entries=(1, 4))
    keep: tuple[str, ...] = setting((), longest=MOST_LAYER_NAME, entries=(0, MOST_LAYERS))
    overrides: Mapping[str, tuple[int | Axis, int]] = setting(
        {}, at_least=1, at_most=MOST_RANK, entries=(0, MOST_LAYERS)
    )
    sensitivity: Literal["energy", "output"] = "output"
    factors: Literal["weights", "activations"] = "activations"
    ridge: float = setting(0.01, at_least=LEAST_RIDGE, at_most=10**6)
    least_gain: float = setting(0.1, at_least=0, below=1)
    images: int = setting(96, at_least=1, at_most=10**5)
    time_allowance: float = setting(0.1, at_least=0, at_most=10**6)

    def check_together(self) -> None:
        """Refuse goals that contradict each other, and layers that are both kept and cut."""
        asked = self._goals()
        if len(asked) > 1:
            first, second = (f"--{name.replace('_', '-')}" for name in asked[:2])
            raise UsageError(
                f"{first} and {second} were both asked; a network has one goal: give one of them"
            )
        if self.measure != "macs" and asked and asked[0] not in ("ratio", "keep_accuracy"):
            raise UsageError(
                f"--measure {self.measure} is of a ratio; leave it out with "
                f"--{asked[0].replace('_', '-')}"
            )
        self._check_forms()
        if both := sorted(set(self.keep) & set(self.overrides)):
            raise UsageError(
                f"{shown(both[0])} is kept and has ranks of its own; choose one of them"
            )

    def _goals(self) -> list[str]:
        return [name for name in GOALS if getattr(self, name) is not None]

    def _check_forms(self) -> None:
        forms, goals = self.forms or OF_LAYERS, self._goals()
        by_macs = self.measure == "macs" and goals in ([], ["ratio"], ["keep_accuracy"])
        if "resolution" in forms and not by_macs:
            raise UsageError(
                "--forms resolution is for a ratio of multiply-accumulates, which alone fall with "
                "the pixels; leave it out with any other goal"
            )
        if forms == ("resolution",):
            raise UsageError(
                "--forms resolution makes no layer smaller; name tucker, hidden or separable too"
            )

    @property
    def of_layers(self) -> tuple[Form, ...]:
        """The forms of single layers."""
        return tuple(form for form in self.forms or OF_LAYERS if form != "resolution")

    @property
    def may_resize(self) -> bool:
        """Whether the network may see its images smaller, where no latency table decides."""
        if self.forms is not None:
            return "resolution" in self.forms
        return self.measure == "macs" and self._goals() in ([], ["ratio"])

    @property
    def overridden(self) -> dict[str, Ranks]:
        """The overrides as ranks."""
        return {name: ranks_from(entry) for name, entry in self.overrides.items()}

    @property
    def needs_table(self) -> bool:
        """Whether the goal is one of time."""
        return self.speedup is not None or self.latency_budget_ms is not None

    @property
    def has_goal(self) -> bool:
        """Whether a goal was asked, and not left to the default."""
        return bool(self._goals())

    @property
    def ratio_or_default(self) -> float:
        """The ratio, where that is the goal; the smallest that is tried where it is searched."""
        if self.keep_accuracy is not None:
            return SEARCHED_RATIOS[0]
        return DEFAULT_RATIO if self.ratio is None else self.ratio


MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOverrides:
    """What the file says.

    Attributes:
        ranks: by layer.
        keep: layers that stay whole.
    """

    ranks: Mapping[str, Ranks]
    keep: tuple[str, ...]


def read_rank_file(path: Path) -> RankOverrides:
    """Read and check the file; whether its layers exist, `choose_ranks` knows.

    Raises:
        UsageError: the file cannot be read, is over 1 MiB, is not TOML, or an entry is neither two
            whole numbers from 1, nor a direction and a rank, nor "keep".
    """
    ranks: dict[str, Ranks] = {}
    keep: list[str] = []
    entries = read_small_toml(path, MAX_FILE_BYTES, hint="a line for a layer is enough")
    for layer, entry in entries.items():
        if entry == "keep":
            keep.append(layer)
        elif _is_ranks(entry):
            ranks[layer] = ranks_from(entry)
        else:
            hint = "; write dotted names in quotes" if isinstance(entry, dict) else ""
            raise UsageError(
                f"{path}: {printable(layer[:80])} = {shown(entry)}; give [r_out, r_in], whole "
                f'numbers from 1 to {MOST_RANK}, ["vertical", r] or ["horizontal", r] for a '
                f'separable kernel, or "keep"{hint}'
            )
    return RankOverrides(ranks=ranks, keep=tuple(keep))


def _is_ranks(entry: object) -> TypeGuard[list[int | str]]:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and (_is_rank(entry[0]) or (isinstance(entry[0], str) and entry[0] in AXES))
        and _is_rank(entry[1])
    )


def _is_rank(entry: object) -> bool:
    return type(entry) is int and 1 <= entry <= MOST_RANK
