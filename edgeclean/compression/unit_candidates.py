"""How many hidden channels every unit could keep, what that loses, and what its layers then cost.

A unit's number of kept channels is a choice of its own, and every convolution of the unit has one
candidate for each number, so that the knapsack sees exact costs: a convolution between two units
(in a plain chain, or the middle of a bottleneck) has one for every pair of numbers. Losses are
added up over units and layers, as they are over layers alone. A layer is cut or factored, not both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import cast

from torch import nn

from edgeclean.compression.candidates import (
    NO_TIME,
    Candidate,
    LayerCandidates,
    OutputEffect,
)
from edgeclean.compression.hidden import HiddenFit
from edgeclean.compression.latency_table import CutTimes, LatencyTable
from edgeclean.compression.planned_network import PlannedNetwork
from edgeclean.compression.rank_grids import allowed_ranks
from edgeclean.compression.settings import Cost, RankSettings
from edgeclean.compression.units import Unit
from edgeclean.networks.layers import Layer
from edgeclean.networks.shapes import ConvShape
from edgeclean.progress import Progress

MULTIPLE = 8  # channels that kernels like to work on at once, where no other number is asked for
_MOST_COUNTS = 16  # of one unit: layers between two units have the square of it
_PROBES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCandidates:
    """The numbers of channels that one unit may keep, ascending; the last is all of them.

    Attributes:
        unit: whose channels they are.
        counts: how many are kept.
        losses: the share of the consumer's outputs that is lost; see `hidden.HiddenFit`.
        effects: what the choice weighs.
        params: of what belongs to the channels, beside the convolutions that ranks are chosen for.
        macs: likewise.
        fit: the order in which channels go; None where only costs are asked for.
    """

    unit: Unit
    counts: tuple[int, ...]
    losses: tuple[float, ...]
    effects: tuple[float, ...]
    params: tuple[int, ...]
    macs: tuple[int, ...]
    fit: HiddenFit | None = None

    def cost(self, place: int, measure: Cost) -> int:
        """Parameters, multiply-accumulates, or no time: what is no convolution is in no table."""
        if measure == "latency":
            return 0
        return self.params[place] if measure == "params" else self.macs[place]


def unit_candidates(
    network: PlannedNetwork,
    settings: RankSettings,
    effect: OutputEffect | None,
    progress: Progress,
) -> tuple[UnitCandidates, ...]:
    """The candidates of every unit without a forced layer.

    Args:
        network: with the units that there are.
        settings: of the choice.
        effect: measures changes of the outputs; None takes the losses.
        progress: told after every unit.
    """
    found: list[UnitCandidates] = []
    asked = unit_costs(network, settings)
    for done, costs in enumerate(asked):
        progress("Measuring hidden channels", done, len(asked))
        unit, counts = costs.unit, costs.counts
        moments = network.covariances(unit)
        fit = network.hidden_fit(unit, counts[0], moments)
        losses = tuple(fit.loss(count) for count in counts)
        effects = losses
        if effect is not None:
            cut = range(len(counts) - 1)
            probes = sorted(
                {round(place * (len(cut) - 1) / (_PROBES - 1)) for place in range(_PROBES)}
            )
            points = []
            for place in probes:
                kept = fit.kept(counts[place])
                refits = {
                    name: network.refit(unit, name, kept, moments.get(name))
                    for name in unit.readers
                }
                points.append((losses[place], effect.of_refits(refits)))
            effects = (*effect.between(points, [losses[place] for place in cut]), 0.0)
        found.append(replace(costs, losses=losses, effects=effects, fit=fit))
    progress("Measuring hidden channels", len(asked), len(asked))
    return tuple(found)


def unit_costs(network: PlannedNetwork, settings: RankSettings) -> tuple[UnitCandidates, ...]:
    """The same without a look at the weights: no loss is known."""
    found = []
    for unit in network.units:
        if set(unit.modules) & set(settings.overrides):
            continue
        counts = kept_counts(unit.channels, settings)
        if len(counts) < 2:
            continue
        along = [_along(network, unit, count) for count in counts]
        none = (0.0,) * len(counts)
        found.append(
            UnitCandidates(
                unit=unit,
                counts=counts,
                losses=none,
                effects=none,
                params=tuple(params for params, _ in along),
                macs=tuple(macs for _, macs in along),
            )
        )
    return tuple(found)


def kept_counts(channels: int, settings: RankSettings) -> tuple[int, ...]:
    """Multiples of 8, or of the ranks' multiple where one is asked for, and all channels."""
    multiple = settings.rank_multiple if settings.rank_multiple > 1 else MULTIPLE
    most = (1 - settings.least_gain) * channels
    counts = [one for one in allowed_ranks(channels, channels, multiple) if one <= most]
    if len(counts) > _MOST_COUNTS:
        last = _MOST_COUNTS - 1
        counts = [counts[place * (len(counts) - 1) // last] for place in range(_MOST_COUNTS)]
    return (*counts, channels)


def with_cuts(
    network: PlannedNetwork,
    listed: Mapping[str, LayerCandidates],
    units: Sequence[UnitCandidates],
    settings: RankSettings,
    table: LatencyTable | None,
) -> dict[str, LayerCandidates]:
    """Every layer's candidates, and beside them what it is with fewer channels.

    With a table, a cut must save as large a share of the layer's time as ranks must. What a
    depthwise convolution saves is in no table and is not counted on.
    """
    outs, ins = sides(units)
    found: dict[str, LayerCandidates] = {}
    for name, layer_candidates in listed.items():
        made, read = outs.get(name), ins.get(name)
        cut: list[Candidate] = []
        layer = network.layers[name]
        out, into = layer.shapes[0].channels
        times = None if table is None else table.cut_times(layer.shapes[0])
        if (made is not None or read is not None) and (table is None or times is not None):
            for kept_out in (out,) if made is None else made.counts:
                for kept_in in (into,) if read is None else read.counts:
                    if (kept_out, kept_in) != (out, into):
                        cut.append(_cut(layer, (kept_out, kept_in), times))
        most_ns = (1 - settings.least_gain) * layer_candidates.dense.ns
        cut = [one for one in cut if table is None or one.ns <= most_ns]
        found[name] = replace(
            layer_candidates,
            candidates=(*layer_candidates.candidates, *cut),
            effects=(*layer_candidates.effects, *[0.0] * len(cut)),
        )
    return found


def cut_shapes(network: PlannedNetwork, settings: RankSettings) -> dict[ConvShape, list[ConvShape]]:
    """What a latency table needs: by the shape of every layer that may be cut, its smaller ones.

    Of a unit's numbers of channels every other one is measured; those between are estimated.
    """
    outs, ins = sides(unit_costs(network, settings))
    found: dict[ConvShape, dict[ConvShape, None]] = {}
    for name in network.convs:
        shape = network.layers[name].shapes[0]
        made, read = outs.get(name), ins.get(name)
        for out in (shape.channels_out,) if made is None else made.counts[::-2]:
            for into in (shape.channels_in,) if read is None else read.counts[::-2]:
                smaller = replace(shape, channels_out=out, channels_in=into)
                if smaller != shape:
                    found.setdefault(shape, {})[smaller] = None
    return {shape: list(smaller) for shape, smaller in found.items()}


def sides(
    units: Sequence[UnitCandidates],
) -> tuple[dict[str, UnitCandidates], dict[str, UnitCandidates]]:
    """The unit that cuts a layer's outputs, and the one that cuts its inputs, by its name."""
    outs = {name: one for one in units for name in (one.unit.producer, *one.unit.gates)}
    ins = {name: one for one in units for name in one.unit.readers}
    return outs, ins


def _cut(layer: Layer, kept: tuple[int, int], times: CutTimes | None) -> Candidate:
    """The one convolution with fewer channels."""
    shape = layer.shapes[0]
    smaller = replace(shape, channels_out=kept[0], channels_in=kept[1])
    has_bias = layer.module.bias is not None or kept[1] < shape.channels_in
    ns, kind = NO_TIME if times is None else times.at(kept)
    return Candidate(
        ranks=None,
        params=smaller.params + (kept[0] if has_bias else 0),
        macs=smaller.macs,
        ns=ns,
        time_kind=kind,
        channels=kept,
    )


def _along(network: PlannedNetwork, unit: Unit, count: int) -> tuple[int, int]:
    """Parameters and MACs of what belongs to the channels and is no convolution of `convs`."""
    params, macs = 0, 0
    for one in unit.held:
        tensor = getattr(network.module.get_submodule(one.module), one.name)
        if isinstance(tensor, nn.Parameter):
            params += tensor.numel() // unit.channels * count
    for name in unit.modules:
        layer = network.layers.get(name)
        if layer is None or name in network.convs:
            continue
        macs += layer.macs // unit.channels * count
        if name in unit.readers or name in unit.gates:  # a linear layer
            linear = cast(nn.Linear, layer.module)
            params += prod(linear.weight.shape) // unit.channels * count
            if name in unit.gates:
                params += count if linear.bias is not None else 0
            elif linear.bias is not None or count < unit.channels:
                params += linear.out_features
    return params, macs
