"""List every defence by name, with the images it is given; settings decide how long each runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.data.images import LabelledImages
from benchmarks.defences.anp import AnpSettings, anp
from benchmarks.defences.base import DefenceEntry
from benchmarks.defences.channel_pruning import PruningSettings, pruned_after
from benchmarks.defences.clean_compact import CleanCompactSettings, clean_compact
from benchmarks.defences.clp import ClpSettings, clp
from benchmarks.defences.compress import PlainSettings, plain_svd, plain_tucker
from benchmarks.defences.edgeclean_default import edgeclean_default, edgeclean_purified
from benchmarks.defences.finetune import FinetuneSettings, finetune_clean
from benchmarks.defences.ibau import IbauSettings, ibau
from benchmarks.defences.nad import NadSettings, nad
from edgeclean.config import PipelineSettings
from edgeclean.networks.state import Network
from edgeclean.runner import Cache, Runner

NO_IMAGES = "none"
ONE_PERCENT = "1 % of the clean training set"
SYSTEMS = (
    "none",
    "plain-tucker",
    "plain-svd",
    "clp",
    "anp",
    "nad",
    "i-bau",
    "fine-tuning",
    "deck",  # Clean & Compact, by its name in results that are measured already
    "edgeclean-full-size",
    "edgeclean",
)
RATIOS = (2, 3, 4)  # those of Clean & Compact's Table 2
Settings = TypeVar("Settings")
SettableDefence = Callable[[Network, LabelledImages, int, Settings], Network]


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenceSettings:
    """Settings of every defence; the defaults are the papers', and edgeclean's own."""

    plain: PlainSettings = field(default_factory=PlainSettings)
    clp: ClpSettings = field(default_factory=ClpSettings)
    anp: AnpSettings = field(default_factory=AnpSettings)
    nad: NadSettings = field(default_factory=NadSettings)
    ibau: IbauSettings = field(default_factory=IbauSettings)
    tuning: FinetuneSettings = field(default_factory=FinetuneSettings)
    clean_compact: CleanCompactSettings = field(default_factory=CleanCompactSettings)
    edgeclean: PipelineSettings = field(default_factory=PipelineSettings)


def every_defence(
    settings: DefenceSettings | None = None, stages: Path | None = None
) -> dict[str, DefenceEntry]:
    """Return `SYSTEMS`, and those that compress (two of them pruned) at each of `RATIOS`.

    In the folder ``stages`` edgeclean's own keep what takes hours on a large network.
    """
    settings = settings or DefenceSettings()
    run = Runner(None if stages is None else Cache(folder=stages, notify=lambda line: None))
    entries = _systems(settings, run)
    pruned_anp = _kept(entries["anp"])
    for ratio in RATIOS:
        entries |= _at_ratio(settings, float(ratio), run)
        entries[f"anp+pruning-{ratio:g}x"] = _pruned(pruned_anp, float(ratio))
    return entries


def nothing(network: Network, clean: LabelledImages, seed: int) -> Network:
    """Return the network as it came: no defence."""
    return network


def _systems(settings: DefenceSettings, run: Runner) -> dict[str, DefenceEntry]:
    return {
        "none": DefenceEntry(defend=nothing, images=NO_IMAGES),
        "plain-tucker": _blind(plain_tucker, settings.plain),
        "plain-svd": _blind(plain_svd, settings.plain),
        "clp": _blind(clp, settings.clp),
        "anp": _shown(anp, settings.anp),
        "nad": _shown(nad, settings.nad),
        "i-bau": _shown(ibau, settings.ibau),
        "fine-tuning": _shown(finetune_clean, settings.tuning),
        "deck": _blind(clean_compact, settings.clean_compact),
        "edgeclean-full-size": _blind(partial(edgeclean_purified, stages=run), settings.edgeclean),
        "edgeclean": _blind(partial(edgeclean_default, stages=run), settings.edgeclean),
    }


def _at_ratio(settings: DefenceSettings, ratio: float, run: Runner) -> dict[str, DefenceEntry]:
    ours = settings.edgeclean
    smaller = replace(ours, ranks=replace(ours.ranks, ratio=ratio))
    return {
        f"plain-tucker-{ratio:g}x": _blind(plain_tucker, replace(settings.plain, ratio=ratio)),
        f"clp+pruning-{ratio:g}x": _pruned(_blind(clp, settings.clp), ratio),
        f"deck-{ratio:g}x": _blind(clean_compact, replace(settings.clean_compact, ratio=ratio)),
        f"edgeclean-{ratio:g}x": _blind(partial(edgeclean_default, stages=run), smaller),
    }


def _blind(defend: SettableDefence[Settings], settings: Settings) -> DefenceEntry:
    return _entry(defend, settings, NO_IMAGES)


def _shown(defend: SettableDefence[Settings], settings: Settings) -> DefenceEntry:
    return _entry(defend, settings, ONE_PERCENT)


def _entry(defend: SettableDefence[Settings], settings: Settings, images: str) -> DefenceEntry:
    def defence(network: Network, clean: LabelledImages, seed: int) -> Network:
        return defend(network, clean, seed, settings)

    return DefenceEntry(defend=defence, images=images, settings=(settings,))


def _kept(entry: DefenceEntry) -> DefenceEntry:
    """Keep a defence's outcome for one network: the ratios of a column differ only after it.

    The seconds of a cell are therefore those of the work that it did itself.
    """
    last: list[tuple[Network, int, Network]] = []

    def defence(network: Network, clean: LabelledImages, seed: int) -> Network:
        if not last or last[0][0] is not network or last[0][1] != seed:
            last[:] = [(network, seed, entry.defend(network, clean, seed))]
        return last[0][2]

    return replace(entry, defend=defence)


def _pruned(entry: DefenceEntry, ratio: float) -> DefenceEntry:
    pruning = PruningSettings(ratio=ratio)
    return DefenceEntry(
        defend=pruned_after(entry.defend, pruning),
        images=entry.images,
        settings=(*entry.settings, pruning),
    )
