"""The one goal of a network as numbers: what it costs now, and what it may cost afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeclean.errors import RatioError, UsageError
from edgeclean.ranks.candidates import Candidate, Cost
from edgeclean.ranks.knapsack import Item, choose_quick
from edgeclean.ranks.latency_table import NS_PER_MS
from edgeclean.ranks.options import LayerOptions
from edgeclean.ranks.settings import RankSettings
from edgeclean.ranks.subject import Subject

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
    subject: Subject,
    network_ns: int | None = None,
    file: FileSize | None = None,
) -> Goal:
    """The goal in numbers.

    Args:
        settings: at most one goal is set in them.
        subject: the original network.
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
        return _size_goal(settings.size_budget, subject, file)
    cost, ratio = settings.measure, settings.ratio_or_default
    before = subject.params if cost == "params" else subject.macs
    asked = before / ratio
    return Goal(
        cost=cost,
        before=before,
        ratio=ratio,
        most=math.floor(asked),
        least=math.ceil(asked / (1 + _OVERSHOOT)),
    )


def pick_forms(
    goal: Goal, options: Mapping[str, LayerOptions], settings: RankSettings
) -> dict[str, Candidate]:
    """The form of every layer: least effect in all within the goal, quicker where that is cheap.

    Raises:
        RatioError: not even the cheapest forms meet it; names the nearest that can be met.
        UsageError: the layers of the latency table take longer than its network.
    """
    fixed = goal.before - sum(layer.dense.cost(goal.cost) for layer in options.values())
    groups: list[Sequence[Item]] = [
        [
            Item(form.cost(goal.cost), effect, form.ns)
            for form, effect in zip(layer.forms, layer.effects, strict=True)
        ]
        for layer in options.values()
    ]
    nearest = fixed + sum(min(item.cost for item in group) for group in groups)
    if goal.cost == "latency" and nearest <= 0:
        raise UsageError(
            "the latency table's layers take longer than its whole network, so nothing can be "
            "planned by it; measure it again on a quiet machine"
        )
    allowance = 0.0 if goal.cost == "latency" else settings.time_allowance
    chosen = choose_quick(
        groups, goal.most - fixed, max(0, goal.least - fixed), allowance=allowance
    )
    if chosen is None:
        raise _out_of_reach(goal, nearest, settings)
    return {
        name: layer.forms[index]
        for (name, layer), index in zip(options.items(), chosen, strict=True)
    }


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


def _size_goal(size_budget: int, subject: Subject, file: FileSize | None) -> Goal:
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
        cost="params", before=subject.params, ratio=subject.params / most, most=most, least=0
    )


def _out_of_reach(goal: Goal, nearest: int, settings: RankSettings) -> RatioError:
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
        f"{word}; {advice}, keep fewer layers or lower --rank-multiple"
    )
