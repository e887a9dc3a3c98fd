"""Run edgeclean's defaults: the stages of its pipeline without export and measurements."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from benchmarks.data.images import LabelledImages
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.purify import PurifySettings, purify, unlearned_classes
from edgeclean.backdoor.scan import ScanSettings, scan
from edgeclean.compression.clamp import scale
from edgeclean.compression.decompose import decompose
from edgeclean.compression.finetune import finetune
from edgeclean.compression.plan import choose_ranks
from edgeclean.compression.truncate import truncate
from edgeclean.config import PipelineSettings
from edgeclean.images.synthesize import SynthesizeSettings, joined, synthesize
from edgeclean.networks.state import (
    FinetunedNetwork,
    Network,
    PurifiedNetwork,
    StageRecord,
    SyntheticImages,
    same_weights,
)


def edgeclean_purified(
    network: Network,
    clean: LabelledImages | None = None,
    seed: int = 0,
    settings: PipelineSettings | None = None,
) -> PurifiedNetwork:
    """Scan and purify a network at full size; ``clean`` is unused."""
    chosen = settings or PipelineSettings()
    return _purify(network, chosen.synthesize, chosen.scan, chosen.purify, seed)[0]


def edgeclean_default(
    network: Network,
    clean: LabelledImages | None = None,
    seed: int = 0,
    settings: PipelineSettings | None = None,
) -> FinetunedNetwork:
    """Scan, purify, compress and recover a network; ``clean`` is unused.

    The weights are those that the pipeline exports; a test holds the two together.
    """
    chosen = settings or PipelineSettings()
    purified, images = _purify(network, chosen.synthesize, chosen.scan, chosen.purify, seed)
    if not same_weights(network.module, purified.module):
        images = joined(images, synthesize(purified, chosen.synthesize.recovery(), seed=seed + 1))
    scaled = scale(decompose(purified, chosen.decompose), chosen.scale)
    plan = choose_ranks(scaled, chosen.ranks, images=images)
    truncated = truncate(scaled, plan, chosen.truncate)
    unlearned = unlearned_classes(purified)
    taught = {"original": network if unlearned else None, "unlearned": unlearned}
    return finetune(truncated, purified, images, chosen.finetune, seed=seed, **taught)


@lru_cache(maxsize=1)
def _purify(
    network: Network,
    drawn: SynthesizeSettings,
    searched: ScanSettings,
    rounds: PurifySettings,
    seed: int,
) -> tuple[PurifiedNetwork, SyntheticImages]:
    """Purify a network, and keep the outcome for the next cell of the column.

    Full size and compressed share it, so a cell's seconds are those of the work it did itself.
    """
    images = synthesize(network, drawn, seed=seed)
    found = scan(network, images, searched, seed=seed)
    purified = purify(network, images, found, rounds, seed=seed)
    *earlier, last = purified.history
    return replace(purified, history=(*earlier, _scan_record(last, found), last)), images


def _scan_record(after: StageRecord, found: ScanReport) -> StageRecord:
    """Return the scan's record, to be kept with the cell; scanning changes no network."""
    summary = found.summary()
    scores = {search["name"]: search["scores"] for search in summary["searches"]}
    kept = {"verdict": found.verdict, "suspects": summary["suspects"], "scores": scores}
    return replace(after, stage="scan", settings={}, notes=kept)
