"""The one goal of a network as numbers: what it costs now, and what it may cost afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeclean.compression.candidates import Candidate, LayerCandidates
from edgeclean.compression.knapsack import Item, choose
from edgeclean.compression.latency_table import NS_PER_MS
from edgeclean.compression.planned_network import PlannedNetwork
from edgeclean.compression.settings import Cost, RankSettings
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


def pick_candidates(
    goal: Goal,
    layers: Mapping[str, LayerCandidates],
    settings: RankSettings,
    every: Iterable[Layer] = (),
) -> dict[str, Candidate]:
    """One candidate of every layer: least effect in all within the goal, or nearly and quickest.

    Args:
        goal: what the network is held to.
        layers: of the layers that may be factored.
        settings: what the goal was asked as.
        every: all layers of the network; those that stay whole are named in a refusal.

    Raises:
        RatioError: not even the cheapest candidates meet it; names the nearest that can be met.
        UsageError: the layers of the latency table take longer than its network.
    """
    fixed = goal.before - sum(layer.dense.cost(goal.cost) for layer in layers.values())
    groups: list[Sequence[Item]] = [
        [
            Item(one.cost(goal.cost), effect, one.ns)
            for one, effect in zip(layer.candidates, layer.effects, strict=True)
        ]
        for layer in layers.values()
    ]
    nearest = fixed + sum(min(item.cost for item in group) for group in groups)
    check_nearest(goal, nearest, settings, every)
    allowance = 0.0 if goal.cost == "latency" else settings.time_allowance
    chosen = choose(groups, goal.most - fixed, max(0, goal.least - fixed), allowance=allowance)
    assert chosen is not None  # noqa: S101 - the cheapest ones are within the goal
    return {
        name: layer.candidates[index]
        for (name, layer), index in zip(layers.items(), chosen, strict=True)
    }


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
        f"{word}; {advice}, keep fewer layers or lower --rank-multiple{'; ' if why else ''}{why}"
    )
