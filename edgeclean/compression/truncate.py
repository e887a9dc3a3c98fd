"""Stage: keep the ranks of a plan; what would not get smaller becomes one convolution again."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from edgeclean.compression.factorisation import (
    Factorisation,
    Ranks,
    Separable,
    merge_block,
    ranks_as_json,
)
from edgeclean.compression.fit import WeightFit
from edgeclean.compression.latency_table import NS_PER_MS
from edgeclean.compression.plan import LayerPlan, RankPlan
from edgeclean.compression.planned_network import Refit, put_
from edgeclean.compression.separable import SeparableFit
from edgeclean.compression.units import cut_, find_units
from edgeclean.errors import RatioError, UsageError
from edgeclean.files.text import printable
from edgeclean.networks.blocks import is_block
from edgeclean.networks.layers import evaluated, require_layers, trace_layers, with_layers
from edgeclean.networks.resized import Resized
from edgeclean.networks.state import (
    DecomposedNetwork,
    JsonValue,
    StageRecord,
    TruncatedNetwork,
    following,
    record,
    settings_as_json,
)
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class TruncateSettings(Settings):
    """What the truncated network must hold to.

    Attributes:
        shortfall: by how much of the asked ratio the met one may fall short.
    """

    shortfall: float = setting(0.0, at_least=0, below=1)


def truncate(
    network: DecomposedNetwork,
    plan: RankPlan,
    settings: TruncateSettings,
    *,
    progress: Progress = silent,
) -> TruncatedNetwork:
    """Keep ranks R1, R2 of every block: G(1:R1, 1:R2), U1(1:R1), U2(1:R2), or the plan's own fits.

    A block that the plan does not factor is merged into one convolution; a mode that keeps all of
    its channels has no factor (see `networks.blocks`), so nothing is ever larger than it was.

    Returns:
        The network at the plan's cost, exactly; the history tells of every layer.

    Raises:
        UsageError: the plan was made for another network.
        RatioError: the asked ratio is not met; names the one that is.

    Source: Clean & Compact (ECCV 2024), step 4.
    """
    blocks = {name: module for name, module in network.module.named_modules() if is_block(module)}
    factored = {one.layer: (one, one.ranks) for one in plan.layers if one.ranks is not None}
    require_layers("the rank plan's layer", factored, blocks)
    replacements: dict[str, nn.Module] = {}
    for done, (name, block) in enumerate(blocks.items()):
        progress("Truncating", done, len(blocks))
        replacements[name] = (
            _truncated(block, *factored[name]) if name in factored else merge_block(block)
        )
    module = evaluated(with_layers(network.module, replacements))
    channels = _cut_units(module, plan, network.spec.input_shape)
    if plan.resolution is not None:
        module = Resized(module, plan.resolution)
    progress("Truncating", len(blocks), len(blocks))
    made_by = _record(module, network, plan, settings)
    if plan.ratio < plan.ratio_asked * (1 - settings.shortfall):
        raise RatioError(
            f"the truncated network is {plan.ratio:.3f} times smaller in {plan.measure}, not "
            f"{plan.ratio_asked:g}; ask for {plan.ratio:.2f}"
        )
    truncated = following(network, TruncatedNetwork, module, made_by)
    return replace(truncated, channels=channels)


def _cut_units(
    module: nn.Module, plan: RankPlan, input_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Cut the plan's units in place; the kept channels of every module that has outputs left.

    Raises:
        UsageError: the plan was made for another network.
    """
    if not plan.units:
        return {}
    layers = {one.name: one for one in trace_layers(module, input_shape)}
    known = {unit.producer: unit for unit in find_units(module, layers, input_shape)}
    kept: dict[str, tuple[int, ...]] = {}
    for one in plan.units:
        unit = known.get(one.producer)
        if unit is None or unit.channels != one.channels or {*unit.readers} != {*one.biases}:
            raise UsageError(
                f"the plan cuts the channels that {printable(one.producer)} makes, and this "
                "network has no such channels; choose the ranks for this network"
            )
        for name, weight in one.weights.items():
            refit = Refit(weight=weight, bias=one.biases.get(name))
            put_(module.get_submodule(name), refit)
    for one in plan.units:
        unit = known[one.producer]
        cut_(module, unit, torch.tensor(one.kept))
        makers = (unit.producer, *unit.gates, *(held.module for held in unit.held))
        kept |= dict.fromkeys(makers, one.kept)
    return kept


def _truncated(block: nn.Sequential, layer: LayerPlan, ranks: Ranks) -> nn.Sequential:
    dense = merge_block(block)
    channels = (dense.out_channels, dense.in_channels)
    if isinstance(ranks, Separable):
        fits = 1 not in dense.kernel_size
    else:
        fits = all(rank <= most for rank, most in zip(ranks, channels, strict=True))
    if not fits:
        raise UsageError(
            f"the plan's ranks {(*ranks_as_json(ranks),)} do not fit {layer.layer} with {channels} "
            f"channels and a kernel of {dense.kernel_size}; choose the ranks for this network"
        )
    if layer.factors is not None:
        return layer.factors.to_block(dense)
    if isinstance(ranks, Separable):
        fit = SeparableFit(dense.weight, ranks.first, most=ranks.rank)
        return fit.at(ranks.rank).to_block(dense)
    full = Factorisation.from_block(block)
    return WeightFit(full, channels).at(ranks).to_block(dense)


def _record(
    module: nn.Module, network: DecomposedNetwork, plan: RankPlan, settings: TruncateSettings
) -> StageRecord:
    """The history's entry.

    Raises:
        UsageError: the truncated network does not cost what the plan says.
    """
    made_by = record(
        "truncate",
        module,
        network.spec,
        {**settings_as_json(settings), "ranks": dict(plan.settings)},
        {
            "measure": plan.measure,
            "ratio_asked": plan.ratio_asked,
            "ratio_met": round(plan.ratio, 4),
            "params_before": plan.params_before,
            "macs_before": plan.macs_before,
            "images_measured_on": plan.images,
            "resolution": None if plan.resolution is None else list(plan.resolution),
            **_times(plan),
            "layers": [layer.as_json() for layer in plan.layers],
            "units": [unit.as_json() for unit in plan.units],
        },
    )
    if (made_by.params, made_by.macs) != (plan.params_after, plan.macs_after):
        raise UsageError(
            f"the plan comes to {plan.params_after} parameters and {plan.macs_after} MACs, the "
            f"network to {made_by.params} and {made_by.macs}: the plan was made for another network"
        )
    return made_by


def _times(plan: RankPlan) -> dict[str, JsonValue]:
    """What was planned by a latency table, if one was: its own numbers, which no run changes."""
    if plan.table is None:
        return {}
    network_ms = None
    if plan.ns_before:
        network_ms = [plan.ns_before / NS_PER_MS, plan.ns_after / NS_PER_MS]
    return {"latency_table": {**plan.table, "network_ms": network_ms}}
