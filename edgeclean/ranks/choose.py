"""Choose the rank of every layer so that the whole network meets one ratio at the least harm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from edgeclean.errors import RatioError, UsageError
from edgeclean.factors.blocks import Factors
from edgeclean.factors.fits import Fit, Ranks
from edgeclean.factors.sites import Site, require_layers
from edgeclean.progress import Progress, silent
from edgeclean.ranks.candidates import (
    Candidate,
    Measure,
    candidate,
    is_pointwise,
    list_candidates,
    whole,
)
from edgeclean.ranks.knapsack import Item, choose
from edgeclean.ranks.plan import LayerPlan, RankPlan
from edgeclean.ranks.sensitivity import OutputEffect
from edgeclean.ranks.subject import Subject, rank_subject
from edgeclean.states import Network, SyntheticImages, settings_as_json

_OVERSHOOT = 0.02  # the ratio that is met may exceed the asked one by this share
_LEAST_RIDGE = 1e-3  # moments are summed in float32, which settles nothing finer
_WORDS = {
    "measure": ("macs", "params"),
    "sensitivity": ("energy", "output"),
    "factors": ("weights", "activations"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """How small, counted in what, and what decides between layers.

    Attributes:
        ratio: cost of the whole original network over that of the whole truncated one; >= 1.
        measure: the cost: multiply-accumulates of one image, or parameters.
        rank_multiple: ranks are multiples of this where the layer is wide enough.
        keep: layers that stay as they are.
        overrides: (r_out, r_in) of single layers; a rank equal to the channel count leaves that
            mode whole.
        sensitivity: weigh layers by the energy that their ranks discard, or by how much the
            network's outputs change on synthetic images.
        factors: cut the leading ranks of the weights' decomposition (the slides), or fit the
            factors to what flows through the layer on synthetic images.
        ridge: how far such a fit leans back to the weights; at least 0.001.
        least_gain: a layer is factored only if that saves at least this share of its cost.
        images: synthetic images to measure on, at most; large networks are given fewer.
    """

    ratio: float = 2.0
    measure: Measure = "macs"
    rank_multiple: int = 1
    keep: tuple[str, ...] = ()
    overrides: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sensitivity: Literal["energy", "output"] = "output"
    factors: Literal["weights", "activations"] = "activations"
    ridge: float = 0.01
    least_gain: float = 0.1
    images: int = 96

    def __post_init__(self) -> None:
        if not (self.ratio >= 1 and math.isfinite(self.ratio)):
            raise UsageError(f"--ratio {self.ratio} was asked; it must be 1 or more")
        for option, allowed in _WORDS.items():
            if getattr(self, option) not in allowed:
                raise UsageError(
                    f"{option} {getattr(self, option)!r} is unknown; it is one of "
                    f"{', '.join(allowed)}"
                )
        if self.rank_multiple < 1 or self.images < 1:
            raise UsageError(
                f"rank_multiple is {self.rank_multiple} and images {self.images}; both must be "
                "at least 1"
            )
        if not (_LEAST_RIDGE <= self.ridge < math.inf and 0 <= self.least_gain < 1):
            raise UsageError(
                f"ridge is {self.ridge} and least_gain {self.least_gain}; ridge must be at least "
                f"{_LEAST_RIDGE}, least_gain in [0, 1)"
            )
        if both := sorted(set(self.keep) & set(self.overrides)):
            raise UsageError(f"{both[0]!r} is kept and has ranks of its own; choose one of them")


def choose_ranks(
    network: Network,
    settings: RankSettings,
    *,
    images: SyntheticImages | None = None,
    progress: Progress = silent,
) -> RankPlan:
    """Spread one whole-network ratio over the layers.

    Every layer has a list of forms (`candidates`), each with an effect: the energy it discards, or
    the measured change of the network's outputs with that layer alone truncated. The plan is the
    choice of forms with the least sum of effects within the budget.

    Args:
        network: original, or decomposed; of the latter only what is decomposed is truncated.
        settings: see `RankSettings`.
        images: to measure on. None plans from the weights alone, whatever the settings say
            (``RankPlan.images`` is then 0).
        progress: told after every layer.

    Returns:
        A plan that meets the ratio, and exceeds it by at most 2 % where the layers' ranks allow.

    Raises:
        RatioError: not even the smallest ranks meet the ratio; names the nearest that can be met.
        UsageError: a layer in ``keep`` or ``overrides`` does not exist, or ranks do not fit it.
        InputRejectedError: a layer holds NaN or infinite weights.
    """
    ridge = settings.ridge if settings.factors == "activations" else None
    subject = rank_subject(network, settings.keep, images, most_images=settings.images, ridge=ridge)
    _check_overrides(subject, settings)
    options = _all_options(subject, settings, progress)
    picked = _pick(subject, options, settings)
    ranks = {name: form.ranks for name, form in picked.items() if form.ranks is not None}
    fitted = subject.fit_in_order(ranks, progress)
    return RankPlan(
        settings=settings_as_json(settings),
        ratio_asked=settings.ratio,
        measure=settings.measure,
        images=0 if subject.batch is None else len(subject.batch),
        layers=tuple(
            _layer_plan(site, options.get(site.name), picked.get(site.name), fitted)
            for site in subject.sites.values()
        ),
        params_before=subject.params,
        macs_before=subject.macs,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """A layer's forms that may be chosen, the effect of each, and the one convolution it is."""

    forms: tuple[Candidate, ...]
    effects: tuple[float, ...]
    dense: Candidate


def _check_overrides(subject: Subject, settings: RankSettings) -> None:
    require_layers("the rank override", settings.overrides, subject.sites)
    for name in settings.overrides:
        if reason := subject.sites[name].reason:
            raise UsageError(f"{name} cannot be given ranks: {reason}; drop its override")


def _all_options(
    subject: Subject, settings: RankSettings, progress: Progress
) -> dict[str, _Options]:
    effect = None
    if subject.batch is not None and settings.sensitivity == "output":
        effect = OutputEffect(subject.module, subject.batch)
    options: dict[str, _Options] = {}
    for done, name in enumerate(subject.convs):
        progress("Measuring layers", done, len(subject.convs))
        options[name] = _options(subject, name, settings, effect)
    progress("Measuring layers", len(subject.convs), len(subject.convs))
    return options


def _options(
    subject: Subject, name: str, settings: RankSettings, effect: OutputEffect | None
) -> _Options:
    """The forms of one layer with their effects; of an overridden layer, that one form."""
    site, conv, fit = subject.sites[name], subject.convs[name], subject.fit(name)
    if name in settings.overrides:
        forms: tuple[Candidate, ...] = (_forced(site, conv, fit, settings.overrides[name]),)
    else:
        forms = list_candidates(
            site,
            conv,
            fit,
            measure=settings.measure,
            rank_multiple=settings.rank_multiple,
            least_gain=settings.least_gain,
        )
    effects = [form.loss for form in forms] if effect is None else effect.effects(name, fit, forms)
    return _Options(forms=forms, effects=tuple(effects), dense=whole(site, conv))


def _forced(site: Site, conv: nn.Conv2d, fit: Fit, ranks: Ranks) -> Candidate:
    """The form that an override asks for.

    Raises:
        UsageError: the ranks do not fit, or the layer would not get smaller.
    """
    channels = (conv.out_channels, conv.in_channels)
    if not all(1 <= rank <= most for rank, most in zip(ranks, channels, strict=True)):
        raise UsageError(
            f"ranks {list(ranks)} of {site.name} must lie between [1, 1] and {list(channels)}"
        )
    if is_pointwise(conv) and ranks[0] != ranks[1]:
        raise UsageError(
            f"{site.name} is a 1x1 convolution and has one rank; give [r, r], not {list(ranks)}"
        )
    form, dense = candidate(site, conv, fit, ranks), whole(site, conv)
    if form.params >= dense.params or form.macs > dense.macs:
        raise UsageError(
            f"ranks {list(ranks)} make {site.name} no smaller ({form.params} parameters and "
            f"{form.macs} MACs against {dense.params} and {dense.macs}); lower them, or keep it"
        )
    return form


def _pick(
    subject: Subject, options: Mapping[str, _Options], settings: RankSettings
) -> dict[str, Candidate]:
    """The form of every layer: least effect in all, within the budget."""
    measure = settings.measure
    before = subject.params if measure == "params" else subject.macs
    fixed = before - sum(layer.dense.cost(measure) for layer in options.values())
    groups: list[Sequence[Item]] = [
        [Item(f.cost(measure), e) for f, e in zip(layer.forms, layer.effects, strict=True)]
        for layer in options.values()
    ]
    asked = before / settings.ratio
    chosen = choose(groups, math.floor(asked) - fixed, math.ceil(asked / (1 + _OVERSHOOT)) - fixed)
    if chosen is None:
        least = fixed + sum(min(item.cost for item in group) for group in groups)
        nearest = math.floor(100 * before / least) / 100
        raise RatioError(
            f"--ratio {settings.ratio:g} of {measure} cannot be met: with every layer at its "
            f"smallest the network is {nearest:.2f} times smaller; ask for --ratio {nearest:.2f} "
            "or less, keep fewer layers or lower --rank-multiple"
        )
    return {
        name: layer.forms[index]
        for (name, layer), index in zip(options.items(), chosen, strict=True)
    }


def _layer_plan(
    site: Site,
    options: _Options | None,
    picked: Candidate | None,
    fitted: Mapping[str, Factors],
) -> LayerPlan:
    if options is None or picked is None:
        return LayerPlan(layer=site.name, ranks=None, reason=site.reason)
    reason = ""
    if picked.ranks is None:
        smaller = len(options.forms) > 1
        reason = "more useful whole at this ratio" if smaller else "would not get smaller"
    return LayerPlan(
        layer=site.name,
        ranks=picked.ranks,
        reason=reason,
        params_before=options.dense.params,
        params_after=picked.params,
        macs_before=options.dense.macs,
        macs_after=picked.macs,
        loss=picked.loss,
        effect=options.effects[options.forms.index(picked)],
        factors=fitted.get(site.name),
    )
