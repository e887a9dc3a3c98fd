"""The stages in order. What each does, and may be told, is in its own module.

load -> synthesize -> scan -> purify -> decompose -> scale -> choose ranks -> truncate
     -> finetune -> export -> check parity -> measure -> write the bundle
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgeclean.bundles.bundle import Bundle, BundleContents, hold_output, write_bundle
from edgeclean.bundles.signing import Signer
from edgeclean.config import PipelineSettings
from edgeclean.environment import describe_environment
from edgeclean.errors import UsageError
from edgeclean.factors.decompose import decompose
from edgeclean.factors.scale import scale
from edgeclean.gates.evaluation import Evaluation, evaluate
from edgeclean.gates.labelled_images import LabelledImages
from edgeclean.gates.policy import Policy
from edgeclean.gates.verdicts import GateVerdict, judge_result, judge_scan, refuse_failed
from edgeclean.loading.checkpoint import load_checkpoint
from edgeclean.progress import Progress, silent
from edgeclean.purification.purify import purify
from edgeclean.ranks.choose import choose_ranks
from edgeclean.ranks.truncate import truncate
from edgeclean.recovery.finetune import finetune
from edgeclean.reports.layer_table import layer_rows, spectra
from edgeclean.reports.page import render_html, trigger_files
from edgeclean.reports.report import Evidence, build_report, same_weights
from edgeclean.reports.reproduce import changed_settings, command_line
from edgeclean.reports.stopwatch import Stopwatch, peak_memory_mib
from edgeclean.resume.stages import Cache, Kept, keep_nothing
from edgeclean.runtime.latency import LatencyReport, measure_pair
from edgeclean.scan import ScanReport, scan
from edgeclean.states import (
    FinetunedNetwork,
    JsonValue,
    LoadedNetwork,
    ModelSpec,
    PurifiedNetwork,
    ScaledNetwork,
    SyntheticImages,
    TruncatedNetwork,
    settings_as_json,
)
from edgeclean.synthesis.synthesize import joined, synthesize
from edgeclean.targets.targets import Target, load_target, require
from exporters.onnx_exporter import export_onnx
from exporters.parity import ParityRecord, check_parity

GOLDEN_IMAGES = 16
NO_GATES = Policy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run made.

    Attributes:
        original: the network as it came.
        purified: the teacher of what followed.
        scaled: decomposed and clamped, not yet truncated.
        compressed: what was exported.
        images: that the compressed network was tuned on.
        scan: of the original.
        model: the ONNX file.
        original_model: the original network's, to compare with.
        parity: of the ONNX file with the compressed network.
        latency: of both ONNX files, measured in turns.
        evaluation: of both on the user's images; None if none were given.
        gates: the verdict on each gate that was asked; all passed.
    """

    original: LoadedNetwork
    purified: PurifiedNetwork
    scaled: ScaledNetwork
    compressed: FinetunedNetwork
    images: SyntheticImages
    scan: ScanReport
    model: bytes
    original_model: bytes
    parity: ParityRecord
    latency: LatencyReport
    evaluation: Evaluation | None = None
    gates: tuple[GateVerdict, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenOutcome:
    """An outcome with the bundle that holds it.

    Attributes:
        outcome: what was made.
        bundle: the files that were written.
        report: the content of ``report.json``.
    """

    outcome: Outcome
    bundle: Bundle
    report: dict[str, JsonValue]


def compress(  # noqa: PLR0913 - what a run is of, and what it tells
    checkpoint: Path,
    spec: ModelSpec,
    output: Path,
    settings: PipelineSettings | None = None,
    *,
    target: Target | None = None,
    policy: Policy = NO_GATES,
    labelled: LabelledImages | None = None,
    code_folder: Path | None = None,
    signer: Signer | None = None,
    cache: Cache | None = None,
    progress: Progress = silent,
) -> WrittenOutcome:
    """Run every stage and write the bundle, which appears whole or not at all.

    Args:
        checkpoint: the stranger's file.
        spec: what the file does not say.
        output: the bundle's folder.
        settings: of every stage; `config.settings_for` makes them for a target.
        target: what the bundle is for; None for the one that the settings name.
        policy: the gates; they refuse a bundle and never change one.
        labelled: the user's own images, to measure accuracy on and for nothing else.
        code_folder: what ``file.py:callable`` in the spec is relative to.
        signer: signs the bundle; None for none.
        cache: where finished stages are kept, for a run that is killed; None to keep none.
        progress: told of every stage that takes longer than a moment.

    Raises:
        EdgecleanError: what was wrong, of the kind that `errors` lists.
    """
    chosen = settings or PipelineSettings()
    device = target or load_target(chosen.target, jetpack=chosen.jetpack)
    require(device, opset=chosen.export.opset)
    if policy.max_accuracy_drop is not None and labelled is None:
        raise UsageError(
            "max-accuracy-drop needs labelled images to measure accuracy on; give --evaluate"
        )
    timed = Stopwatch(progress)
    with hold_output(output) as held:
        original = timed(load_checkpoint, "Loading")(
            checkpoint, spec, limits=chosen.load, code_folder=code_folder
        )
        kept = keep_nothing if cache is None else cache.of(original, chosen.seed)
        outcome = run_stages(
            original, chosen, policy=policy, kept=kept, timed=timed, progress=progress
        )
        outcome = _judged(outcome, policy, labelled, timed)
        again = command_line(checkpoint, spec, chosen)
        report = build_report(_evidence(outcome, chosen, device, timed, again))
        contents = _contents(outcome, chosen, device, report)
        bundle = write_bundle(held, contents, signer=signer)
    return WrittenOutcome(
        outcome=outcome,
        bundle=bundle,
        report={**report, "manifest_sha256": bundle.manifest_sha256},
    )


def run_stages(
    original: LoadedNetwork,
    settings: PipelineSettings,
    *,
    policy: Policy = NO_GATES,
    kept: Kept = keep_nothing,
    timed: Stopwatch | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Every stage between the loaded network and the bundle; nothing but the cache is written."""
    chosen, seed = settings, settings.seed
    timed = timed or Stopwatch(progress)
    draw = timed(kept(synthesize, chosen.synthesize))
    images = draw(original, chosen.synthesize, seed=seed, progress=progress)
    search = timed(kept(scan, chosen.scan))
    found = search(original, images, chosen.scan, seed=seed, progress=progress)
    refuse_failed(judge_scan(policy, found))  # now: what follows takes minutes
    heal = timed(kept(purify, chosen.purify, like=original))
    purified = heal(original, images, found, chosen.purify, seed=seed, progress=progress)
    if not same_weights(original.module, purified.module):
        # Images of a backdoored network may carry its trigger; the purified teacher's answers to
        # them do not, and its own images add what the first ones miss.
        draw = timed(kept(synthesize, chosen.synthesize.recovery()))
        fresh = draw(purified, chosen.synthesize.recovery(), seed=seed + 1, progress=progress)
        images = joined(images, fresh)
    decomposed = timed(decompose)(purified, chosen.decompose, progress=progress)
    scaled = timed(scale)(decomposed, chosen.scale, progress=progress)
    # The two cheap stages before are run again; their settings decide the plan all the same.
    choose = timed(kept(choose_ranks, chosen.decompose, chosen.scale, chosen.ranks))
    plan = choose(scaled, chosen.ranks, images=images, progress=progress)
    truncated = timed(truncate)(scaled, plan, chosen.truncate, progress=progress)
    teach = timed(kept(finetune, chosen.truncate, chosen.finetune, like=truncated))
    compressed = teach(truncated, purified, images, chosen.finetune, seed=seed, progress=progress)
    export = timed(export_onnx, "Exporting")
    model, original_model = export(compressed, chosen.export), export(original, chosen.export)
    parity = timed(check_parity, "Checking parity")(compressed, model, images.pixels, chosen.parity)
    latency = timed(measure_pair, "Measuring latency")(original_model, model, chosen.latency)
    return Outcome(
        original=original,
        purified=purified,
        scaled=scaled,
        compressed=compressed,
        images=images,
        scan=found,
        model=model,
        original_model=original_model,
        parity=parity,
        latency=latency,
    )


def scan_checkpoint(
    checkpoint: Path,
    spec: ModelSpec,
    settings: PipelineSettings,
    *,
    code_folder: Path | None = None,
    progress: Progress = silent,
) -> tuple[LoadedNetwork, SyntheticImages, ScanReport]:
    """Load a network, make images of it, and look for a backdoor; nothing is changed."""
    loaded = load_checkpoint(checkpoint, spec, limits=settings.load, code_folder=code_folder)
    images = synthesize(loaded, settings.synthesize, seed=settings.seed, progress=progress)
    return (
        loaded,
        images,
        scan(loaded, images, settings.scan, seed=settings.seed, progress=progress),
    )


def plan_checkpoint(
    checkpoint: Path,
    spec: ModelSpec,
    settings: PipelineSettings,
    *,
    code_folder: Path | None = None,
    progress: Progress = silent,
) -> tuple[LoadedNetwork, TruncatedNetwork]:
    """What would be replaced at a ratio: the same ranks but for the synthetic images' say."""
    loaded = load_checkpoint(checkpoint, spec, limits=settings.load, code_folder=code_folder)
    decomposed = decompose(loaded, settings.decompose, progress=progress)
    scaled = scale(decomposed, settings.scale, progress=progress)
    plan = choose_ranks(scaled, settings.ranks, progress=progress)
    return loaded, truncate(scaled, plan, settings.truncate, progress=progress)


def _judged(
    outcome: Outcome, policy: Policy, labelled: LabelledImages | None, timed: Stopwatch
) -> Outcome:
    """The outcome with its verdicts, all of which passed."""
    evaluation = None
    if labelled is not None:
        files = outcome.original_model, outcome.model
        evaluation = timed(evaluate)(*files, labelled, outcome.original.spec)
    gates = judge_scan(policy, outcome.scan)
    gates += judge_result(policy, evaluation, len(outcome.model), outcome.latency)
    refuse_failed(gates)
    return replace(outcome, evaluation=evaluation, gates=gates)


def _evidence(
    outcome: Outcome, settings: PipelineSettings, target: Target, timed: Stopwatch, command: str
) -> Evidence:
    clamped = None if settings.scale.tau is None else outcome.scaled
    return Evidence(
        original=outcome.original,
        purified=outcome.purified,
        compressed=outcome.compressed,
        images=outcome.images,
        scan=outcome.scan,
        layers=layer_rows(outcome.original, outcome.compressed),
        spectra=spectra(outcome.purified, clamped, outcome.compressed),
        original_onnx_bytes=len(outcome.original_model),
        onnx_bytes=len(outcome.model),
        parity=outcome.parity,
        latency=outcome.latency,
        evaluation=outcome.evaluation,
        gates=outcome.gates,
        target={"name": target.name, "description": target.description},
        stage_seconds=timed.seconds,
        peak_memory_mib=peak_memory_mib(),
        environment=describe_environment(),
        seed=settings.seed,
        command=command,
        settings_toml=changed_settings(settings),
    )


def _contents(
    outcome: Outcome, settings: PipelineSettings, target: Target, report: dict[str, JsonValue]
) -> BundleContents:
    return BundleContents(
        model=outcome.model,
        network=outcome.compressed,
        configuration=settings_as_json(settings),
        seed=settings.seed,
        target=asdict(target),
        golden_pixels=outcome.images.pixels[:GOLDEN_IMAGES],
        golden_tolerance=settings.parity.tolerance,
        measurements=report,
        page=lambda manifest, whole: render_html(
            manifest, whole, images=outcome.images, scan=outcome.scan
        ),
        reproducible_files=trigger_files(outcome.scan),
    )
