"""What every layer may become: its forms, each with its cost and its effect on the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from edgeclean.errors import UsageError
from edgeclean.factors.fits import Fit, Ranks
from edgeclean.factors.sites import Site, require_layers
from edgeclean.progress import Progress
from edgeclean.ranks.candidates import (
    Candidate,
    Cost,
    FormLimits,
    LayerTimes,
    candidate,
    is_pointwise,
    list_candidates,
    whole,
)
from edgeclean.ranks.sensitivity import OutputEffect
from edgeclean.ranks.settings import RankSettings
from edgeclean.ranks.subject import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What all layers are judged by.

    Attributes:
        cost: that the goal is in.
        times: by layer, of the latency table; None without one.
    """

    cost: Cost
    times: Mapping[str, LayerTimes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOptions:
    """A layer's forms that may be chosen, the effect of each, and the one convolution it is.

    Attributes:
        timed: False for a layer that the given latency table does not know.
    """

    forms: tuple[Candidate, ...]
    effects: tuple[float, ...]
    dense: Candidate
    timed: bool = True


def check_overrides(subject: Subject, settings: RankSettings) -> None:
    """Refuse ranks for layers that do not exist or may not be factored.

    Raises:
        UsageError: names the layer, and why.
    """
    require_layers("the rank override", settings.overrides, subject.sites)
    for name in settings.overrides:
        if reason := subject.sites[name].reason:
            raise UsageError(f"{name} cannot be given ranks: {reason}; drop its override")


def all_options(
    subject: Subject,
    settings: RankSettings,
    given: Given,
    progress: Progress,
) -> dict[str, LayerOptions]:
    """By layer. With a latency table, a layer that it does not know has the one form that it is."""
    effect = None
    if subject.batch is not None and settings.sensitivity == "output":
        effect = OutputEffect(subject.module, subject.batch)
    options: dict[str, LayerOptions] = {}
    for done, name in enumerate(subject.convs):
        progress("Measuring layers", done, len(subject.convs))
        options[name] = _options(subject, name, settings, effect, given)
    progress("Measuring layers", len(subject.convs), len(subject.convs))
    return options


def _options(
    subject: Subject, name: str, settings: RankSettings, effect: OutputEffect | None, given: Given
) -> LayerOptions:
    """The forms of one layer with their effects; of an overridden layer, that one form."""
    site, conv, fit = subject.sites[name], subject.convs[name], subject.fit(name)
    times = None if given.times is None else given.times.get(name)
    dense = whole(site, conv, times)
    untimed = given.times is not None and times is None
    if name in settings.overrides:
        forms: tuple[Candidate, ...] = (_forced(site, conv, fit, settings.overrides[name], times),)
    elif untimed:
        return LayerOptions(forms=(dense,), effects=(0.0,), dense=dense, timed=False)
    else:
        limits = FormLimits(
            cost=given.cost,
            rank_multiple=settings.rank_multiple,
            least_gain=settings.least_gain,
        )
        forms = list_candidates(site, conv, fit, limits=limits, times=times)
    effects = [form.loss for form in forms] if effect is None else effect.effects(name, fit, forms)
    return LayerOptions(forms=forms, effects=tuple(effects), dense=dense)


def _forced(
    site: Site, conv: nn.Conv2d, fit: Fit, ranks: Ranks, times: LayerTimes | None
) -> Candidate:
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
    form, dense = candidate(site, conv, fit, ranks, times), whole(site, conv, times)
    if form.params >= dense.params or form.macs > dense.macs:
        raise UsageError(
            f"ranks {list(ranks)} make {site.name} no smaller ({form.params} parameters and "
            f"{form.macs} MACs against {dense.params} and {dense.macs}); lower them, or keep it"
        )
    return form
