"""Compare two networks layer by layer: each layer's fate, its ranks, cost and spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from edgeclean.compression.factorisation import Axis, SeparableKernel, factors_of, kernel_of
from edgeclean.compression.tucker import singular_values
from edgeclean.networks.autocast import device_of
from edgeclean.networks.blocks import is_block
from edgeclean.networks.cost import count_params
from edgeclean.networks.folding import folded_copy
from edgeclean.networks.layers import Layer, trace_layers
from edgeclean.networks.state import JsonValue, Network

SPECTRUM_POINTS = 64
EXAMPLES = 2  # images that show which BatchNorm follows which convolution
Fate = Literal["factored", "cut", "kept", "one convolution"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer, before and after.

    Attributes:
        name: dotted name.
        kind: "convolution", "pointwise", "linear", ...
        shape: shape of its weight: out, in (of all groups), and the kernel's sides.
        fate: "factored"; "cut", which is one layer with fewer channels; "kept" because it may not
            be factored; or "one convolution" for a layer that may be, and stays (or was put back)
            whole.
        reason: why it was kept; empty if it was factored or cut.
        rank_out: output rank of the block; None where that mode is not factored.
        rank_in: input rank of the block; None where that mode is not factored.
        params_before: parameters of the layer with its bias.
        params_after: parameters of what stands in its place.
        macs_before: multiply-accumulates for one image.
        macs_after: multiply-accumulates of what stands in its place.
        ms_before: milliseconds of the one convolution by the latency table; None without one.
        ms_after: milliseconds of the candidate that was chosen; None without a table.
        time_kind: whether the table holds that candidate's time or estimates it from others.
        kept_out: output channels that are left; None where all are.
        kept_in: input channels that are left; likewise.
        separable_first: of a separable block, the direction of the first convolution.
        separable_rank: of a separable block, the channels between its two convolutions.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    fate: Fate
    reason: str
    rank_out: int | None
    rank_in: int | None
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    ms_before: float | None = None
    ms_after: float | None = None
    time_kind: Literal["measured", "estimated"] | None = None
    kept_out: int | None = None
    kept_in: int | None = None
    separable_first: Axis | None = None
    separable_rank: int | None = None

    @property
    def becomes(self) -> str:
        """The layer after the compression in a few words; empty for one that stays as it is."""
        if self.separable_rank is not None:
            parts = [f"{self.shape[2]}x1", f"1x{self.shape[3]}"]
            if self.separable_first == "horizontal":
                parts.reverse()
            return f"{parts[0]} to {self.separable_rank}, {parts[1]}"
        if self.fate == "factored":
            return f"ranks {self.rank_out or 'whole'} x {self.rank_in or 'whole'}"
        sides = ((self.kept_out, self.shape[0]), (self.kept_in, self.shape[1]))
        cut = dict.fromkeys(f"{kept} of {every}" for kept, every in sides if kept is not None)
        return f"hidden {', '.join(cut)}" if cut else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """Singular values of one kernel's output mode, divided by the original kernel's largest.

    The BatchNorm behind a kernel is in it.

    Attributes:
        name: name of the layer.
        positions: positions of the values, counted from 1; at most 64, evenly spread.
        before: the original's values at these positions.
        scaled: the values after the clamp; None where nothing was clamped.
        compressed: the compressed network's values; shorter where its rank is lower.
        rank: the output rank that was kept; None where the mode is not factored.
    """

    name: str
    positions: tuple[int, ...]
    before: tuple[float, ...]
    scaled: tuple[float, ...] | None
    compressed: tuple[float, ...]
    rank: int | None


def layer_rows(before: Network, after: Network) -> tuple[LayerRow, ...]:
    """Return a row for every layer of ``before``; ``after`` holds the same layers, or blocks."""
    changed = {layer.name: layer for layer in _layers(after)}
    reasons, times = _planned_reasons(after), _planned_times(after)
    rows = []
    for layer in _layers(before):
        other = changed[layer.name]
        described = layer.describe()
        left = other.describe()
        kept_out, kept_in = (left[side] if left[side] < described[side] else None
                             for side in ("out", "in"))  # fmt: skip
        is_cut = kept_out is not None or kept_in is not None
        rows.append(
            LayerRow(
                name=layer.name,
                kind=described["kind"],
                shape=(described["out"], described["in"], *described["kernel"]),
                fate="cut" if is_cut and not is_block(other.module) else _fate(layer, other),
                reason=""
                if is_cut or is_block(other.module)
                else reasons.get(layer.name, layer.reason),
                params_before=count_params(layer.module),
                params_after=count_params(other.module),
                macs_before=layer.macs,
                macs_after=other.macs,
                kept_out=kept_out,
                kept_in=kept_in,
                **_ranks(other.module),
                **times.get(layer.name, {}),
            )
        )
    return tuple(rows)


def spectra(before: Network, scaled: Network | None, compressed: Network) -> tuple[Spectrum, ...]:
    """Return the spectrum of every layer that may be factored, the largest saving of MACs first.

    Kernels are compared with the BatchNorm behind them in them: recovery moves the one into the
    other.

    Args:
        before: the network whose kernels were factored.
        scaled: the same network with its singular values clamped; None where none were.
        compressed: the compressed network.
    """
    values = [_singular_values(one) for one in (before, scaled, compressed) if one is not None]
    ranks = {layer.name: _ranks(layer.module)["rank_out"] for layer in _layers(compressed)}
    saved = {row.name: row.macs_before - row.macs_after for row in layer_rows(before, compressed)}
    found = []
    for name in sorted(values[0], key=lambda name: -saved[name]):
        largest = float(values[0][name].max()) or 1.0
        positions = _positions(len(values[0][name]))
        found.append(
            Spectrum(
                name=name,
                positions=positions,
                before=_pick(values[0][name] / largest, positions, None),
                scaled=None
                if scaled is None
                else _pick(values[1][name] / largest, positions, None),
                compressed=_pick(values[-1][name] / largest, positions, ranks[name]),
                rank=ranks[name],
            )
        )
    return tuple(found)


def _planned_times(network: Network) -> dict[str, dict[str, JsonValue]]:
    """Return each layer's times from the latency table, as the plan recorded them."""
    return {
        layer["layer"]: {
            "ms_before": layer["ms"][0],
            "ms_after": layer["ms"][1],
            "time_kind": layer["time_kind"],
        }
        for record in network.history
        for layer in record.notes.get("layers", ())
        if "ms" in layer
    }


def _planned_reasons(network: Network) -> dict[str, str]:
    """Return why layers stayed whole, from the first stage that recorded a reason."""
    reasons: dict[str, str] = {}
    for record in network.history:
        for layer in record.notes.get("layers", ()):
            name = layer.get("name", layer.get("layer"))
            if layer["reason"]:
                reasons.setdefault(name, layer["reason"])
    return reasons


def _fate(before: Layer, after: Layer) -> Fate:
    if is_block(after.module):
        return "factored"
    return "kept" if before.reason else "one convolution"


def _ranks(module: nn.Module) -> dict[str, Any]:
    """Return a row's ranks; None for a mode without a factor, and for anything but a block."""
    found: dict[str, Any] = {"rank_out": None, "rank_in": None}
    if not is_block(module):
        return found
    weights = factors_of(module)
    if isinstance(weights, SeparableKernel):
        ranks = weights.ranks
        return {**found, "separable_first": ranks.first, "separable_rank": ranks.rank}
    rank_out, rank_in = weights.ranks
    return {
        "rank_out": None if weights.factor_out is None else rank_out,
        "rank_in": None if weights.factor_in is None else rank_in,
    }


def _singular_values(network: Network) -> dict[str, Float[Tensor, " values"]]:
    shape = network.spec.input_shape
    images = torch.randn(EXAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    folded = folded_copy(network.module, images.to(device_of(network.module)))
    return {
        layer.name: singular_values(kernel_of(layer), 1)
        for layer in trace_layers(folded, shape)
        if not layer.reason
    }


def _layers(network: Network) -> tuple[Layer, ...]:
    return trace_layers(network.module, network.spec.input_shape)


def _positions(count: int) -> tuple[int, ...]:
    if count <= SPECTRUM_POINTS:
        return tuple(range(1, count + 1))
    return tuple(int(p) for p in torch.linspace(1, count, SPECTRUM_POINTS).round().tolist())


def _pick(values: Tensor, positions: tuple[int, ...], rank: int | None) -> tuple[float, ...]:
    """Return the values at these positions with five digits, all that a plot can show."""
    last = len(values) if rank is None else min(rank, len(values))
    return tuple(float(f"{float(values[p - 1]):.5g}") for p in positions if p <= last)
