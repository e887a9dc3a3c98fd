"""Choose the rank of every layer so that the whole network meets one goal at the least harm."""

from __future__ import annotations

from collections.abc import Mapping

from edgeclean.errors import UsageError
from edgeclean.factors.blocks import Factors
from edgeclean.factors.sites import Site
from edgeclean.progress import Progress, silent
from edgeclean.ranks.candidates import Candidate, LayerTimes
from edgeclean.ranks.goals import FileSize, goal_of, pick_forms
from edgeclean.ranks.latency_table import LatencyTable, layers_digest
from edgeclean.ranks.options import Given, LayerOptions, all_options, check_overrides
from edgeclean.ranks.plan import LayerPlan, RankPlan
from edgeclean.ranks.settings import RankSettings
from edgeclean.ranks.signatures import layer_signatures
from edgeclean.ranks.subject import Subject, rank_subject
from edgeclean.states import Network, SyntheticImages, settings_as_json

__all__ = ["RankSettings", "choose_ranks"]


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

    Every layer has a list of forms (`candidates`), each with an effect: the energy it discards, or
    the measured change of the network's outputs with that layer alone truncated. The plan is the
    choice of forms with the least sum of effects within the budget. With a latency table, forms
    that the table does not hold, or that gain no time by it, are not chosen from, so no layer is
    slower than the one convolution it was; and with a ratio, of choices that harm about as little
    the quicker one is taken.

    Args:
        network: original, or decomposed; of the latter only what is decomposed is truncated.
        settings: see `RankSettings`.
        images: to measure on. None plans from the weights alone, whatever the settings say
            (``RankPlan.images`` is then 0).
        table: what each form takes on the device; goals of time need it.
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
    subject = rank_subject(network, settings.keep, images, most_images=settings.images, ridge=ridge)
    check_overrides(subject, settings)
    times, whole_ns = (None, None) if table is None else _times(subject, network, table)
    goal = goal_of(settings, subject, whole_ns, file)
    options = all_options(subject, settings, Given(cost=goal.cost, times=times), progress)
    picked = pick_forms(goal, options, settings)
    ranks = {name: form.ranks for name, form in picked.items() if form.ranks is not None}
    fitted = subject.fit_in_order(ranks, progress)
    return RankPlan(
        settings=settings_as_json(settings),
        ratio_asked=goal.ratio,
        measure=goal.cost,
        images=0 if subject.batch is None else len(subject.batch),
        layers=tuple(
            _layer_plan(site, options.get(site.name), picked.get(site.name), fitted)
            for site in subject.sites.values()
        ),
        params_before=subject.params,
        macs_before=subject.macs,
        ns_before=whole_ns or 0,
        table=None if table is None else settings_as_json(table.facts()),
    )


def _times(
    subject: Subject, network: Network, table: LatencyTable
) -> tuple[dict[str, LayerTimes], int | None]:
    """What the table says of every layer that it knows, and of the whole network if it does.

    Raises:
        UsageError: it knows none of the layers.
    """
    signatures = layer_signatures(subject.module, network.spec.input_shape)
    known = {name: table.times(one) for name, one in signatures.items() if name in subject.convs}
    times = {name: one for name, one in known.items() if one is not None}
    if not times:
        raise UsageError(
            f"the latency table ({table.device}) knows none of this network's layers; measure one "
            "for this network with `edgeclean latency-table`"
        )
    return times, table.network_ns(layers_digest(signatures.values()))


def _layer_plan(
    site: Site,
    options: LayerOptions | None,
    picked: Candidate | None,
    fitted: Mapping[str, Factors],
) -> LayerPlan:
    if options is None or picked is None:
        return LayerPlan(layer=site.name, ranks=None, reason=site.reason)
    reason = ""
    if picked.ranks is None:
        smaller = len(options.forms) > 1
        reason = "more useful whole at this ratio" if smaller else "would not get smaller"
        if picked.time_kind and not smaller:
            reason = "one convolution is the fastest form"
        if not options.timed:
            reason = "not in the latency table"
    return LayerPlan(
        layer=site.name,
        ranks=picked.ranks,
        reason=reason,
        params_before=options.dense.params,
        params_after=picked.params,
        macs_before=options.dense.macs,
        macs_after=picked.macs,
        loss=picked.loss,
        ns_before=options.dense.ns,
        ns_after=picked.ns,
        time_kind=picked.time_kind,
        effect=options.effects[options.forms.index(picked)],
        factors=fitted.get(site.name),
    )
