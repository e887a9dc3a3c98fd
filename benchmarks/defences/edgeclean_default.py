"""Run edgeclean's defaults: the stages of its pipeline without export and measurements."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.data.images import LabelledImages
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.purify import purify, unlearned_classes
from edgeclean.backdoor.scan import scan
from edgeclean.compression.clamp import scale
from edgeclean.compression.decompose import decompose
from edgeclean.compression.finetune import finetune
from edgeclean.compression.resolution import choose_plan
from edgeclean.compression.truncate import truncate
from edgeclean.config import PipelineSettings
from edgeclean.images.synthesize import joined, synthesize
from edgeclean.networks.state import (
    FinetunedNetwork,
    Network,
    PurifiedNetwork,
    StageRecord,
    SyntheticImages,
    same_weights,
)
from edgeclean.runner import Runner


def edgeclean_purified(
    network: Network,
    clean: LabelledImages | None = None,
    seed: int = 0,
    settings: PipelineSettings | None = None,
    stages: Runner | None = None,
) -> PurifiedNetwork:
    """Scan and purify a network at full size; ``clean`` is unused.

    ``stages`` keeps what takes longest, for the column's next cell and for a later session.
    """
    return _purify(network, settings or PipelineSettings(), seed, stages or Runner())[0]


def edgeclean_default(
    network: Network,
    clean: LabelledImages | None = None,
    seed: int = 0,
    settings: PipelineSettings | None = None,
    stages: Runner | None = None,
) -> FinetunedNetwork:
    """Scan, purify, compress and recover a network; ``clean`` is unused.

    The weights are those that the pipeline exports; a test holds the two together. ``stages`` is
    `edgeclean_purified`'s.
    """
    chosen, run = settings or PipelineSettings(), stages or Runner()
    purified, images = _purify(network, chosen, seed, run)
    if not same_weights(network.module, purified.module):
        recovery = chosen.synthesize.recovery()
        images = joined(
            images, run.once("synthesize", synthesize, purified, recovery, seed=seed + 1)
        )
    scaled = scale(decompose(purified, chosen.decompose), chosen.scale)
    plan = choose_plan(scaled, chosen.ranks, images=images, recovery=chosen.finetune, seed=seed)
    truncated = truncate(scaled, plan, chosen.truncate)
    unlearned = unlearned_classes(purified)
    taught = {"original": network if unlearned else None, "unlearned": unlearned}
    return finetune(truncated, purified, images, chosen.finetune, seed=seed, **taught)


def _purify(
    network: Network, chosen: PipelineSettings, seed: int, run: Runner
) -> tuple[PurifiedNetwork, SyntheticImages]:
    """Purify a network.

    Full size and compressed share the stages, so a cell's seconds are those of the work it did
    itself.
    """
    images = run.once("synthesize", synthesize, network, chosen.synthesize, seed=seed)
    found = run.once("scan", scan, network, images, chosen.scan, seed=seed)
    purified = run.once("purify", purify, network, images, found, chosen.purify, seed=seed)
    *earlier, last = purified.history
    return replace(purified, history=(*earlier, _scan_record(last, found), last)), images


def _scan_record(after: StageRecord, found: ScanReport) -> StageRecord:
    """Return the scan's record, to be kept with the cell; scanning changes no network."""
    summary = found.summary()
    scores = {search["name"]: search["scores"] for search in summary["searches"]}
    kept = {"verdict": found.verdict, "suspects": summary["suspects"], "scores": scores}
    return replace(after, stage="scan", settings={}, notes=kept)
