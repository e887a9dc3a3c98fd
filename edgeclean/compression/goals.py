"""The one goal of a network as numbers: what it costs now, and what it may cost afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeclean.compression.candidates import Candidate, LayerCandidates
from edgeclean.compression.knapsack import Item, Tie, choose, least_cost
from edgeclean.compression.latency_table import NS_PER_MS
from edgeclean.compression.planned_network import PlannedNetwork
from edgeclean.compression.settings import Cost, RankSettings
from edgeclean.compression.unit_candidates import UnitCandidates, sides
from edgeclean.compression.whole import why_whole
from edgeclean.errors import RatioError, UsageError
from edgeclean.networks.layers import Layer

_OVERSHOOT = 0.02  # the ratio that is met may exceed the asked one by this share


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSize:
    """How an ONNX file's bytes follow from the parameters.

    Attributes:
        bytes_per_param: of the precision that is written.
        overhead_bytes: of the graph itself.
    """

    bytes_per_param: float
    overhead_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the truncated network is held to.

    Attributes:
        cost: what is counted.
        before: of the whole original network.
        ratio: of before to after that is asked; below 1 if the original is within the budget.
        most: that may remain.
        least: that should remain, for nothing is gained by more harm than was asked for.
    """

    cost: Cost
    before: int
    ratio: float
    most: int
    least: int


def goal_of(
    settings: RankSettings,
    network: PlannedNetwork,
    network_ns: int | None = None,
    file: FileSize | None = None,
) -> Goal:
    """The goal in numbers.

    Args:
        settings: at most one goal is set in them.
        network: in its original shape.
        network_ns: its latency, by the table.
        file: what a size budget needs.

    Raises:
        UsageError: a goal of time is asked and the table has no time of this network, or a size
            is asked and nothing is known of the file.
        RatioError: the size budget does not even hold the graph.
    """
    if settings.needs_table:
        return _latency_goal(settings, network_ns)
    if settings.size_budget is not None:
        return _size_goal(settings.size_budget, network, file)
    cost, ratio = settings.measure, settings.ratio_or_default
    before = network.params if cost == "params" else network.macs
    asked = before / ratio
    return Goal(
        cost=cost,
        before=before,
        ratio=ratio,
        most=math.floor(asked),
        least=math.ceil(asked / (1 + _OVERSHOOT)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """What was chosen.

    Attributes:
        layers: one candidate of every layer that may change.
        units: the place of one of the counts of every unit.
    """

    layers: dict[str, Candidate]
    units: tuple[int, ...]


def pick_candidates(
    goal: Goal,
    layers: Mapping[str, LayerCandidates],
    units: Sequence[UnitCandidates],
    settings: RankSettings,
    every: Iterable[Layer] = (),
) -> Picked:
    """One candidate of every layer: least effect in all within the goal, or nearly and quickest.

    Args:
        goal: what the network is held to.
        layers: of the layers that may be factored or cut.
        units: whose channels may go.
        settings: what the goal was asked as.
        every: all layers of the network; those that stay whole are named in a refusal.

    Raises:
        RatioError: not even the cheapest candidates meet it; names the nearest that can be met.
        UsageError: the layers of the latency table take longer than its network.
    """
    fixed = goal.before - whole_cost(goal, layers, units)
    groups, ties = _groups(goal, layers, units)
    check_nearest(goal, fixed + least_cost(groups, ties), settings, _whole(every, units))
    allowance = 0.0 if goal.cost == "latency" else settings.time_allowance
    most, least = goal.most - fixed, max(0, goal.least - fixed)
    chosen = choose(groups, most, least, allowance=allowance, ties=ties)
    assert chosen is not None  # noqa: S101 - the cheapest ones are within the goal
    return Picked(
        layers={
            name: layer.candidates[index]
            for (name, layer), index in zip(layers.items(), chosen, strict=False)
        },
        units=chosen[len(layers) :],
    )


def pick_whole(
    goal: Goal,
    layers: Mapping[str, LayerCandidates],
    units: Sequence[UnitCandidates],
    settings: RankSettings,
) -> Picked:
    """The same where all channels stay.

    Raises:
        RatioError: ranks alone do not meet the goal.
        UsageError: see `pick_candidates`.
    """
    whole = {}
    for name, layer in layers.items():
        pairs = zip(layer.candidates, layer.effects, strict=True)
        listed = [(one, effect) for one, effect in pairs if one.channels is None]
        candidates, effects = zip(*listed, strict=True)
        whole[name] = replace(layer, candidates=candidates, effects=effects)
    picked = pick_candidates(goal, whole, (), settings)
    return replace(picked, units=tuple(len(one.counts) - 1 for one in units))


def check_reachable(
    goal: Goal,
    layers: Mapping[str, LayerCandidates],
    units: Sequence[UnitCandidates],
    settings: RankSettings,
    every: Iterable[Layer] = (),
) -> None:
    """Refuse what `pick_candidates` would refuse; of the candidates only the costs matter.

    Raises:
        RatioError: see `pick_candidates`.
        UsageError: likewise.
    """
    fixed = goal.before - whole_cost(goal, layers, units)
    nearest = fixed + least_cost(*_groups(goal, layers, units))
    check_nearest(goal, nearest, settings, _whole(every, units))


def whole_cost(
    goal: Goal, layers: Mapping[str, LayerCandidates], units: Sequence[UnitCandidates]
) -> int:
    """What all that may change costs as it is."""
    dense = sum(layer.dense.cost(goal.cost) for layer in layers.values())
    return dense + sum(one.cost(-1, goal.cost) for one in units)


def _whole(every: Iterable[Layer], units: Sequence[UnitCandidates]) -> list[Layer]:
    """The layers but those that go with channels, of which none is to be called whole."""
    cut = {name for one in units for name in one.unit.modules}
    return [layer if layer.name not in cut else replace(layer, reason="") for layer in every]


def _groups(
    goal: Goal, layers: Mapping[str, LayerCandidates], units: Sequence[UnitCandidates]
) -> tuple[list[list[Item]], list[Tie]]:
    """The knapsack: a group for each layer and then for each unit, and what must agree."""
    groups: list[list[Item]] = []
    numbers: dict[str, int] = {}
    outs, ins = sides(units)
    for number, (name, layer) in enumerate(layers.items()):
        numbers[name] = number
        made, read = outs.get(name), ins.get(name)
        whole = (made.unit.channels if made else 0, read.unit.channels if read else 0)
        groups.append(
            [
                Item(one.cost(goal.cost), effect, one.ns, labels=one.channels or whole)
                for one, effect in zip(layer.candidates, layer.effects, strict=True)
            ]
        )
    ties: list[Tie] = []
    for number, unit in enumerate(units, start=len(layers)):
        places = range(len(unit.counts))
        groups.append(
            [
                Item(
                    unit.cost(place, goal.cost), unit.effects[place], labels=(unit.counts[place], 0)
                )
                for place in places
            ]
        )
        for side, of in enumerate((outs, ins)):
            ties += [
                Tie((number, 0), (numbers[name], side))
                for name, one in of.items()
                if one is unit and name in numbers
            ]
    return groups, ties


def check_nearest(
    goal: Goal, nearest: int, settings: RankSettings, every: Iterable[Layer] = ()
) -> None:
    """Refuse a goal that not even the cheapest candidates meet.

    Args:
        goal: what the network is held to.
        nearest: what it costs with every layer at its smallest.
        settings: what the goal was asked as.
        every: all layers of the network; those that stay whole are named.

    Raises:
        RatioError: names the nearest that can be met.
        UsageError: the layers of the latency table take longer than its network.
    """
    if goal.cost == "latency" and nearest <= 0:
        raise UsageError(
            "the latency table's layers take longer than its whole network, so nothing can be "
            "planned by it; measure it again on a quiet machine"
        )
    if nearest > goal.most:
        raise _out_of_reach(goal, nearest, settings, why_whole(every, goal.cost))


def _latency_goal(settings: RankSettings, network_ns: int | None) -> Goal:
    if network_ns is None:
        raise UsageError(
            "a goal of time was asked, and there is no latency table that holds this network's "
            "time; give --latency-table with one that `edgeclean latency-table` measured for it"
        )
    if settings.speedup is not None:
        most = math.floor(network_ns / settings.speedup)
    else:
        most = math.floor((settings.latency_budget_ms or 0.0) * NS_PER_MS)
    return Goal(
        cost="latency", before=network_ns, ratio=network_ns / max(1, most), most=most, least=0
    )


def _size_goal(size_budget: int, network: PlannedNetwork, file: FileSize | None) -> Goal:
    if file is None:
        raise UsageError(
            "--size-budget is of the file that is written, so it cannot be planned without one; "
            "ask for a ratio of params"
        )
    most = math.floor((size_budget - file.overhead_bytes) / file.bytes_per_param)
    if most < 1:
        raise RatioError(
            f"--size-budget {size_budget} cannot be met: the graph alone takes about "
            f"{file.overhead_bytes} bytes"
        )
    return Goal(
        cost="params", before=network.params, ratio=network.params / most, most=most, least=0
    )


def _out_of_reach(goal: Goal, nearest: int, settings: RankSettings, why: str) -> RatioError:
    times = math.floor(100 * goal.before / nearest) / 100
    advice = f"ask for --ratio {times:.2f} or less"
    asked = f"--ratio {goal.ratio:g} of {goal.cost}"
    if settings.speedup is not None:
        asked, advice = f"--speedup {settings.speedup:g}", f"ask for --speedup {times:.2f} or less"
    if settings.latency_budget_ms is not None:
        asked = f"--latency-budget-ms {settings.latency_budget_ms:g}"
        least_ms = math.ceil(nearest / NS_PER_MS * 1000) / 1000
        advice = f"ask for --latency-budget-ms {least_ms:g} or more"
    if settings.size_budget is not None:
        asked, advice = f"--size-budget {settings.size_budget}", "ask for more bytes"
    word = "faster" if goal.cost == "latency" else "smaller"
    return RatioError(
        f"{asked} cannot be met: with every layer at its smallest the network is {times:.2f} times "
        f"{word}; {advice}, keep fewer layers or lower --rank-multiple{'; ' if why else ''}{why}",
        nearest=times if asked.startswith("--ratio") else None,
    )
