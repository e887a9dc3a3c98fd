"""Choose the ranks of every layer so that the whole network meets one goal at the least harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from torch import Tensor

from edgeclean.compression.candidates import (
    Candidate,
    LayerCandidates,
    all_candidates,
    check_overrides,
    output_effect,
)
from edgeclean.compression.factorisation import Factors, Ranks, ranks_as_json
from edgeclean.compression.goals import (
    FileSize,
    Goal,
    Picked,
    goal_of,
    pick_candidates,
    pick_whole,
)
from edgeclean.compression.latency_table import (
    NS_PER_MS,
    LatencyTable,
    LayerTimes,
    TimeKind,
    layers_digest,
)
from edgeclean.compression.planned_network import Fitted, PlannedNetwork, Refit, planned_network
from edgeclean.compression.settings import Cost, RankSettings
from edgeclean.compression.unit_candidates import UnitCandidates, unit_candidates, with_cuts
from edgeclean.errors import RatioError, UsageError
from edgeclean.networks.layers import Layer, conv_shapes
from edgeclean.networks.resized import Size
from edgeclean.networks.state import JsonValue, Network, SyntheticImages, settings_as_json
from edgeclean.progress import Progress, silent

_CLEARLY = 0.9  # of the change that ranks alone make: channels go only where theirs is below

__all__ = ["LayerPlan", "RankPlan", "RankSettings", "choose_ranks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """What becomes of one layer.

    Attributes:
        layer: dotted name.
        ranks: (r_out, r_in), or those of a separable kernel; None: it stays, or becomes again, what
            it was.
        reason: why it is not factored; empty if it is.
        params_before: of the layer as it was, its bias included; 0 of a layer not looked at.
        macs_before: of one image.
        loss: the fraction lost (see `fit.Fit`), of the layer alone.
        ns_before: nanoseconds of the one convolution by the latency table; 0 without one.
        ns_after: at the ranks that were chosen.
        time_kind: whether the table holds those ranks; empty without a table.
        effect: what the choice weighed: predicted change of the network's outputs, or the loss.
        factors: fitted to activations; None takes the leading ranks of the decomposition.
        channels: (out, in) that are left of one convolution; None where all are.
    """

    layer: str
    ranks: Ranks | None
    reason: str
    params_before: int = 0
    params_after: int = 0
    macs_before: int = 0
    macs_after: int = 0
    ns_before: int = 0
    ns_after: int = 0
    time_kind: TimeKind = ""
    loss: float = 0.0
    effect: float = 0.0
    factors: Factors | None = field(default=None, repr=False)
    channels: tuple[int, int] | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """Everything but the weights."""
        times: dict[str, JsonValue] = {}
        if self.time_kind:
            ms = [self.ns_before / NS_PER_MS, self.ns_after / NS_PER_MS]
            times = {"ms": ms, "time_kind": self.time_kind}
        return {
            "layer": self.layer,
            "ranks": None if self.ranks is None else ranks_as_json(self.ranks),
            "channels": None if self.channels is None else list(self.channels),
            "reason": self.reason,
            "params": [self.params_before, self.params_after],
            "macs": [self.macs_before, self.macs_after],
            "loss": round(self.loss, 6),
            "effect": round(self.effect, 6),
            "fitted": self.factors is not None,
            **times,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlan:
    """Hidden channels of which some go; see `units.Unit`.

    Attributes:
        producer: the convolution that makes them.
        channels: how many there were.
        kept: those that stay.
        loss: the fraction lost of the consumer's outputs, of this unit alone.
        effect: what the choice weighed.
        params_before: of what belongs to the channels beside the layers of the plan.
        macs_before: likewise, of one image.
        weights: of the layers that read the channels, fitted to those that stay and zero for the
            others; and of the producer, where it was fitted to what it is fed.
        biases: of the readers.
    """

    producer: str
    channels: int
    kept: tuple[int, ...]
    loss: float
    effect: float
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    weights: Mapping[str, Tensor] = field(repr=False)
    biases: Mapping[str, Tensor] = field(repr=False)

    def as_json(self) -> dict[str, JsonValue]:
        """Everything but the weights, and of the channels the number."""
        return {
            "producer": self.producer,
            "readers": list(self.biases),
            "hidden": [self.channels, len(self.kept)],
            "loss": round(self.loss, 6),
            "effect": round(self.effect, 6),
            "params": [self.params_before, self.params_after],
            "macs": [self.macs_before, self.macs_after],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """What becomes of all layers, and what they come to.

    Attributes:
        settings: of the choice, as JSON.
        ratio_asked: of the whole network's cost before to after.
        measure: what is counted.
        images: how many images had a say; 0 if only the weights had.
        layers: every convolution and linear layer, in the network's order.
        params_before: of the whole original network.
        macs_before: of one image.
        ns_before: of the whole original network by the latency table; 0 where it holds none.
        table: the facts of that table; None without one.
        units: whose hidden channels are cut.
        resolution: (height, width) at which the layers see the images; None for their own.
            MACs of a single layer or unit, before and after, are of that resolution.
        macs_resized: of the whole original network at that resolution; None for its own.
    """

    settings: Mapping[str, JsonValue]
    ratio_asked: float
    measure: Cost
    images: int
    layers: tuple[LayerPlan, ...]
    params_before: int
    macs_before: int
    ns_before: int = 0
    table: Mapping[str, JsonValue] | None = None
    units: tuple[UnitPlan, ...] = ()
    resolution: Size | None = None
    macs_resized: int | None = None

    @property
    def params_after(self) -> int:
        """Parameters of the whole truncated network."""
        every: tuple[LayerPlan | UnitPlan, ...] = (*self.layers, *self.units)
        return self.params_before - sum(p.params_before - p.params_after for p in every)

    @property
    def macs_after(self) -> int:
        """Multiply-accumulates of the whole truncated network, for one image."""
        every: tuple[LayerPlan | UnitPlan, ...] = (*self.layers, *self.units)
        seen = self.macs_before if self.macs_resized is None else self.macs_resized
        return seen - sum(p.macs_before - p.macs_after for p in every)

    @property
    def ns_after(self) -> int:
        """Nanoseconds of the whole truncated network; 0 where no latency table holds its time."""
        if self.ns_before == 0:
            return 0
        return self.ns_before - sum(p.ns_before - p.ns_after for p in self.layers)

    @property
    def ratio(self) -> float:
        """What is met, in the measure that was asked."""
        if self.measure == "latency":
            return self.ns_before / self.ns_after
        if self.measure == "params":
            return self.params_before / self.params_after
        return self.macs_before / self.macs_after

    def ranks(self) -> dict[str, Ranks | None]:
        """The ranks of every layer; None for one that is not factored."""
        return {plan.layer: plan.ranks for plan in self.layers}


def choose_ranks(
    network: Network,
    settings: RankSettings,
    *,
    images: SyntheticImages | None = None,
    table: LatencyTable | None = None,
    file: FileSize | None = None,
    progress: Progress = silent,
) -> RankPlan:
    """Spread one whole-network goal over the layers.

    Every layer has a list of candidates, each with an effect: the energy it discards, or the
    measured change of the network's outputs with that layer alone truncated. The plan is the
    choice of candidates with the least sum of effects within the budget. With a latency table,
    ranks that the table does not hold, or that gain no time by it, are not chosen from, so no layer
    is slower than the one convolution it was; and with a ratio, of choices that harm about as
    little the quickest one is taken.

    Args:
        network: original, or decomposed; of the latter only what is decomposed is truncated.
        settings: see `RankSettings`.
        images: to measure on. None plans from the weights alone, whatever the settings say
            (``RankPlan.images`` is then 0).
        table: what each layer takes on the device; goals of time need it.
        file: what a size budget needs.
        progress: told after every layer.

    Returns:
        A plan that meets the goal, and exceeds a ratio by at most 2 % where the layers' ranks
        allow.

    Raises:
        RatioError: not even the smallest ranks meet the goal; names the nearest that can be met.
        UsageError: a layer in ``keep`` or ``overrides`` does not exist, or ranks do not fit it; the
            table is of another network.
        InputRejectedError: a layer holds NaN or infinite weights.
    """
    ridge = settings.ridge if settings.factors == "activations" else None
    planned = planned_network(
        *(network, settings.keep, images),
        most_images=settings.images,
        ridge=ridge,
        hidden="hidden" in settings.of_layers,
    )
    check_overrides(planned, settings)
    times, network_ns = (None, None) if table is None else layer_times(planned, table)
    goal = goal_of(settings, planned, network_ns, file)
    effect = output_effect(planned, settings)
    listed = all_candidates(planned, settings, goal.cost, times, progress, effect)
    units = unit_candidates(planned, settings, effect, progress)
    listed = with_cuts(planned, listed, units, settings, table)
    picked, fitted = _chosen(planned, settings, goal, (listed, units), progress)
    cuts = _cuts(units, picked.units)
    return RankPlan(
        settings=settings_as_json(settings),
        ratio_asked=goal.ratio,
        measure=goal.cost,
        images=0 if planned.batch is None else len(planned.batch),
        layers=tuple(
            _layer_plan(layer, listed.get(name), picked.layers.get(name), fitted.factors.get(name))
            for name, layer in planned.layers.items()
        ),
        params_before=planned.params,
        macs_before=planned.macs,
        ns_before=network_ns or 0,
        table=None if table is None else settings_as_json(table.facts()),
        units=tuple(
            _unit_plan(one, place, cuts[one.unit.producer], fitted.refits)
            for one, place in zip(units, picked.units, strict=True)
            if one.unit.producer in cuts
        ),
    )


def layer_times(
    planned: PlannedNetwork, table: LatencyTable
) -> tuple[dict[str, LayerTimes], int | None]:
    """What the table says of every layer that it knows, and of the whole network if it does.

    Raises:
        UsageError: it knows none of the layers.
    """
    shapes = conv_shapes(planned.layers.values())
    known = {name: table.times(shape) for name, shape in shapes.items() if name in planned.convs}
    times = {name: one for name, one in known.items() if one is not None}
    if not times:
        raise UsageError(
            f"the latency table ({table.device}) knows none of this network's layers; measure one "
            "for this network with `edgeclean latency-table`"
        )
    return times, table.network_ns(layers_digest(shapes.values()))


def _layer_plan(
    layer: Layer,
    listed: LayerCandidates | None,
    picked: Candidate | None,
    fitted: Factors | None,
) -> LayerPlan:
    if listed is None or picked is None:
        return LayerPlan(layer=layer.name, ranks=None, reason=layer.reason)
    reason = ""
    if picked.ranks is None and picked.channels is None:
        smaller = any(one.channels is None and one.ranks for one in listed.candidates)
        reason = "more useful whole at this ratio" if smaller else "would not get smaller"
        if picked.time_kind and not smaller:
            reason = "one convolution is the fastest form"
        if not listed.timed:
            reason = "not in the latency table"
    return LayerPlan(
        layer=layer.name,
        ranks=picked.ranks,
        reason=reason,
        params_before=listed.dense.params,
        params_after=picked.params,
        macs_before=listed.dense.macs,
        macs_after=picked.macs,
        loss=picked.loss,
        ns_before=listed.dense.ns,
        ns_after=picked.ns,
        time_kind=picked.time_kind,
        effect=listed.effects[listed.candidates.index(picked)],
        factors=fitted,
        channels=picked.channels,
    )


def _chosen(
    planned: PlannedNetwork,
    settings: RankSettings,
    goal: Goal,
    candidates: tuple[Mapping[str, LayerCandidates], Sequence[UnitCandidates]],
    progress: Progress,
) -> tuple[Picked, Fitted]:
    """The best choice, its layers fitted.

    Effects that are small add up; large ones do not, and a unit that is all but emptied has one
    that its shortcut bounds. So where channels would go, the choice without that is fitted as well,
    and taken unless it changes the outputs clearly more. Without images it is taken wherever it
    reaches the goal.

    Raises:
        RatioError: not even the smallest ranks meet the goal.
    """
    listed, units = candidates
    every = planned.layers.values()
    options = [pick_candidates(goal, listed, units, settings, every)]
    if _cuts(units, options[0].units):
        with suppress(RatioError):
            options.append(pick_whole(goal, listed, units, settings))
        if planned.others is None:  # nothing to compare the two on
            del options[:-1]
    fitted = []
    for picked in options:
        ranks = {name: one.ranks for name, one in picked.layers.items() if one.ranks is not None}
        fitted.append(planned.fit_in_order(ranks, _cuts(units, picked.units), progress))
    best = len(options) - 1
    if fitted[0].change <= _CLEARLY * fitted[best].change:
        best = 0
    return options[best], fitted[best]


def _cuts(units: Sequence[UnitCandidates], chosen: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The channels that stay, of every unit that is cut."""
    return {
        one.unit.producer: one.fit.kept(one.counts[place])
        for one, place in zip(units, chosen, strict=True)
        if one.fit is not None and one.counts[place] < one.unit.channels
    }


def _unit_plan(
    listed: UnitCandidates, place: int, kept: tuple[int, ...], refits: Mapping[str, Refit]
) -> UnitPlan:
    unit = listed.unit
    names = [name for name in (unit.producer, *unit.readers) if name in refits]
    weights = {name: refits[name].weight for name in names}
    fitted = {name: refits[name].bias for name in unit.readers}
    biases = {name: bias for name, bias in fitted.items() if bias is not None}
    return UnitPlan(
        producer=listed.unit.producer,
        channels=listed.unit.channels,
        kept=kept,
        loss=listed.losses[place],
        effect=listed.effects[place],
        params_before=listed.params[-1],
        params_after=listed.params[place],
        macs_before=listed.macs[-1],
        macs_after=listed.macs[place],
        weights=weights,
        biases=biases,
    )
