"""Whether layers can reach a goal, from their shapes alone and before anything that is long.

What each stage would say after minutes is said in milliseconds: that nothing is decomposed, that
ranks do not fit their layer, that not even the smallest ranks meet the goal. No purification
changes a shape, so what holds of the network as it was loaded holds of what ranks are chosen for.
"""

from __future__ import annotations

from collections.abc import Collection

from edgeclean.compression.candidates import (
    Candidate,
    CandidateLimits,
    LayerCandidates,
    cheapest_candidate,
    check_overrides,
    dense_candidate,
    forced_candidate,
)
from edgeclean.compression.goals import FileSize, Goal, check_reachable, goal_of
from edgeclean.compression.latency_table import LatencyTable, LayerTimes
from edgeclean.compression.plan import layer_times
from edgeclean.compression.planned_network import PlannedNetwork, planned_network
from edgeclean.compression.settings import RankSettings
from edgeclean.compression.unit_candidates import unit_costs, with_cuts
from edgeclean.compression.whole import why_none
from edgeclean.errors import UsageError
from edgeclean.networks.state import Network


def check_layers_reach(
    network: Network,
    settings: RankSettings,
    *,
    keep: Collection[str] = (),
    table: LatencyTable | None = None,
    file: FileSize | None = None,
) -> None:
    """Refuse what `decompose`, `scale` and `choose_ranks` would refuse, unless weights decide it.

    A goal of time without a table, or of a size without the file, is left to `choose_ranks`.

    Args:
        network: in its original shape.
        settings: of the choice of ranks.
        keep: the layers that are not decomposed.
        table: what each layer takes on the device.
        file: what a size budget needs.

    Raises:
        RatioError: not even the smallest ranks meet the goal; names the nearest that can be met.
        UsageError: nothing would be decomposed; a layer in ``keep`` or ``overrides`` does not
            exist, or ranks do not fit it; the table is of another network.
    """
    decomposed = planned_network(network, keep, None, most_images=1, ridge=None)
    if not decomposed.convs:
        layers = decomposed.layers.values()
        raise UsageError(why_none([{**one.describe(), "reason": one.reason} for one in layers]))
    kept = {*keep, *settings.keep}
    hidden = "hidden" in settings.of_layers
    planned = planned_network(network, kept, None, most_images=1, ridge=None, hidden=hidden)
    check_overrides(planned, settings)
    times, network_ns = (None, None) if table is None else layer_times(planned, table)
    if settings.needs_table and table is None:
        return
    if settings.size_budget is not None and file is None:
        return
    goal = goal_of(settings, planned, network_ns, file)
    units = unit_costs(planned, settings)
    smallest = _smallest(planned, settings, goal, times)
    listed = with_cuts(planned, smallest, units, settings, table)
    check_reachable(goal, listed, units, settings, planned.layers.values())


def _smallest(
    planned: PlannedNetwork,
    settings: RankSettings,
    goal: Goal,
    times: dict[str, LayerTimes] | None,
) -> dict[str, LayerCandidates]:
    """Of every layer that may be factored the smallest form, and the one convolution."""
    limits, overridden = CandidateLimits.of(settings, goal.cost), settings.overridden
    found: dict[str, LayerCandidates] = {}
    for name in planned.convs:
        layer, known = planned.layers[name], None if times is None else times.get(name)
        dense = dense_candidate(layer, known)
        forms: tuple[Candidate, ...] = (dense,)
        if name in overridden:
            forms = (forced_candidate(layer, overridden[name], known),)
        elif times is None or known is not None:
            forms = (cheapest_candidate(layer, limits=limits, times=known), dense)
        found[name] = LayerCandidates(candidates=forms, effects=(0.0,) * len(forms), dense=dense)
    return found
