"""Make a purified network small: decompose, scale, choose ranks, truncate, recover.

`pipeline` runs these stages once; the search for a ratio (`accuracy_goal`) tries several.
"""

from __future__ import annotations

from dataclasses import replace

from edgeclean.backdoor.purify import unlearned_classes
from edgeclean.compression.clamp import choose_tau, scale
from edgeclean.compression.decompose import decompose
from edgeclean.compression.finetune import finetune
from edgeclean.compression.goals import FileSize
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.compression.resolution import choose_plan
from edgeclean.compression.truncate import truncate
from edgeclean.config import PipelineSettings
from edgeclean.gates import refuse_slower
from edgeclean.images.synthesize import synthesize
from edgeclean.measure.latency import measure_pair
from edgeclean.measure.machine_table import is_of_this_machine
from edgeclean.networks.state import (
    FinetunedNetwork,
    LoadedNetwork,
    PurifiedNetwork,
    ScaledNetwork,
    SyntheticImages,
    TruncatedNetwork,
)
from edgeclean.runner import Runner
from exporters.onnx_exporter import export_onnx

EARLY_RUNS = 40  # measured of the truncated network, before the minutes of fine-tuning
TAU_IMAGES = 256


def scaled_network(
    purified: PurifiedNetwork, images: SyntheticImages, settings: PipelineSettings, run: Runner
) -> ScaledNetwork:
    """Decompose, and clamp at a tau that is given or, for clean-compact, chosen."""
    decomposed = run("decompose", decompose, purified, settings.decompose)
    clamp = settings.scale
    if clamp.tau is None and settings.purify.mode == "clean-compact":
        some = images.pixels[:TAU_IMAGES]
        clamp = run("choose_tau", choose_tau, decomposed, some, clamp)
    return run("scale", scale, decomposed, clamp)


def truncated_network(
    scaled: ScaledNetwork,
    images: SyntheticImages,
    settings: PipelineSettings,
    table: LatencyTable | None,
    file: FileSize | None,
    run: Runner,
) -> TruncatedNetwork:
    """Choose ranks on the images, and cut the network to them.

    Raises:
        RatioError: the goal is out of reach.
    """
    plan = run.once(
        "ranks",
        choose_plan,
        *(scaled, settings.ranks),
        images=images,
        recovery=settings.finetune,
        table=table,
        file=file,
        seed=settings.seed,
    )
    return run("truncate", truncate, scaled, plan, settings.truncate)


def refuse_slower_early(
    original: LoadedNetwork,
    truncated: TruncatedNetwork,
    settings: PipelineSettings,
    table: LatencyTable | None,
    run: Runner,
) -> None:
    """Refuse a network that is slower here than the original, before what takes minutes.

    Raises:
        BudgetError: it is, on the machine of its latency table.
    """
    if table is not None and is_of_this_machine(table):
        early = replace(settings.latency, runs=min(EARLY_RUNS, settings.latency.runs))
        whole, cut = (export_onnx(one, settings.export) for one in (original, truncated))
        refuse_slower(run("early latency", measure_pair, whole, cut, early))


def recovered_network(
    original: LoadedNetwork,
    purified: PurifiedNetwork,
    truncated: TruncatedNetwork,
    images: SyntheticImages,
    settings: PipelineSettings,
    run: Runner,
) -> tuple[FinetunedNetwork, SyntheticImages]:
    """Recover accuracy; return the network and the images that it was tuned on."""
    seed = settings.seed
    if settings.purify.mode == "clean-compact":  # the constrained network takes their class loss
        drawn = settings.synthesize
        images = run.once(
            "synthesize", synthesize, purified, drawn, seed=seed + 1, classifier=truncated
        )
    unlearned = unlearned_classes(purified)
    compressed = run.once(
        "finetune",
        finetune,
        *(truncated, purified, images, settings.finetune),
        seed=seed,
        original=original if unlearned else None,
        unlearned=unlearned,
    )
    return compressed, images
