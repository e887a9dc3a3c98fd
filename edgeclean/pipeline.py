"""The stages in order. What each does, and may be told, is in its own module.

load -> synthesize -> scan -> purify -> decompose -> scale -> choose ranks -> truncate
     -> finetune -> export -> check parity -> measure -> write the bundle
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgeclean.bundles.bundle import Bundle, BundleContents, hold_output, write_bundle
from edgeclean.bundles.device_kit import kit_files
from edgeclean.bundles.signing import Signer
from edgeclean.compress.clamp import scale
from edgeclean.compress.decompose import decompose
from edgeclean.compress.latency_table import LatencyTable
from edgeclean.compress.plan import choose_ranks
from edgeclean.compress.truncate import truncate
from edgeclean.compute import gpu_name, placed, require_compute
from edgeclean.config import PipelineSettings
from edgeclean.environment import describe_environment
from edgeclean.errors import UsageError
from edgeclean.gates.evaluation import evaluate
from edgeclean.gates.labelled_images import LabelledImages
from edgeclean.gates.policy import Policy
from edgeclean.gates.verdicts import judge_result, judge_scan, refuse_failed
from edgeclean.loading.checkpoint import load_checkpoint
from edgeclean.progress import Progress, silent
from edgeclean.reports.layer_table import layer_rows, spectra
from edgeclean.reports.page import render_html, trigger_files
from edgeclean.reports.report import Evidence, build_report
from edgeclean.reports.reproduce import changed_settings, command_line
from edgeclean.reports.stopwatch import Stopwatch, peak_memory_mib
from edgeclean.resume.stages import Cache, keep_nothing
from edgeclean.resume.tables import check_table, measured_table
from edgeclean.runtime.block_latency import BlockLatencySettings
from edgeclean.scan import ScanReport, scan
from edgeclean.scan.aftermath import trigger_success
from edgeclean.stages import BYTES_PER_PARAM, NO_GATES, Outcome, run_stages
from edgeclean.states import (
    JsonValue,
    LoadedNetwork,
    ModelSpec,
    Network,
    SyntheticImages,
    TruncatedNetwork,
    settings_as_json,
)
from edgeclean.synthesis.synthesize import synthesize
from edgeclean.targets.targets import Target, load_target, require
from exporters.precision import GOLDEN_TOLERANCE, check_precision

GOLDEN_IMAGES = 16


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
    latency_table: LatencyTable | None = None,
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
        latency_table: what forms of layers take on the device. None measures one here where the
            settings ask for a speed-up or a budget of time, and keeps it in the cache.
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
    require_compute(chosen.compute)
    check_precision(chosen.precision, chosen.export, device)
    _check_goal(chosen, device, latency_table)
    if policy.max_accuracy_drop is not None and labelled is None:
        raise UsageError(
            "max-accuracy-drop needs labelled images to measure accuracy on; give --evaluate"
        )
    timed = Stopwatch(progress)
    with hold_output(output) as held:
        original = timed(load_checkpoint, "Loading")(
            checkpoint, spec, limits=chosen.load, code_folder=code_folder
        )
        original = placed(original, chosen.compute)
        kept = keep_nothing if cache is None else cache.of(original, chosen.seed)
        table = latency_table or _measured(original, chosen, cache, timed, progress)
        outcome = run_stages(
            original,
            chosen,
            table=table,
            policy=policy,
            kept=kept,
            timed=timed,
            progress=progress,
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


def scan_checkpoint(
    checkpoint: Path,
    spec: ModelSpec,
    settings: PipelineSettings,
    *,
    code_folder: Path | None = None,
    progress: Progress = silent,
) -> tuple[LoadedNetwork, SyntheticImages, ScanReport]:
    """Load a network, make images of it, and look for a backdoor; nothing is changed."""
    require_compute(settings.compute)
    loaded = load_checkpoint(checkpoint, spec, limits=settings.load, code_folder=code_folder)
    loaded = placed(loaded, settings.compute)
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


def _check_goal(settings: PipelineSettings, target: Target, table: LatencyTable | None) -> None:
    """Refuse goals that cannot be planned for this target, before anything is loaded.

    Raises:
        UsageError: the table is of another precision, there is none and none can be measured here,
            or a size is asked of a precision whose file sizes cannot be foretold.
    """
    precision, goal = settings.precision.format, settings.ranks
    if table is not None:
        measured = settings.latency
        check_table(table, precision=precision, threads=measured.threads, batch=measured.batch)
    elif goal.needs_table and (target.runtime != "onnxruntime" or precision != "fp32"):
        raise UsageError(
            f"a goal of time was asked for {target.name} in {precision}, which cannot be measured "
            "here; give --latency-table with one measured there, or ask for --ratio"
        )
    if goal.size_budget is not None and precision not in BYTES_PER_PARAM:
        raise UsageError(
            f"--size-budget cannot be planned for {precision}, whose layers may stay in fp32; ask "
            "for --ratio with --measure params, and refuse larger files with --max-size"
        )


def _measured(
    original: LoadedNetwork,
    settings: PipelineSettings,
    cache: Cache | None,
    timed: Stopwatch,
    progress: Progress,
) -> LatencyTable | None:
    """A table of this machine, where the goal is one of time."""
    if not settings.ranks.needs_table:
        return None
    return timed(measured_table)(
        original,
        BlockLatencySettings(threads=settings.latency.threads, batch=settings.latency.batch),
        overrides=dict(settings.ranks.overrides),
        kept=None if cache is None else cache.store,
        progress=progress,
    )


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
    clamped = outcome.scaled if outcome.scaled.history[-1].notes["scaled"] else None
    networks: dict[str, Network] = {
        "original": outcome.original,
        "purified": outcome.purified,
        "compressed": outcome.compressed,
    }
    return Evidence(
        original=outcome.original,
        purified=outcome.purified,
        compressed=outcome.compressed,
        images=outcome.images,
        scan=outcome.scan,
        trigger_success=trigger_success(outcome.scan, networks, outcome.images.pixels),
        layers=layer_rows(outcome.original, outcome.compressed),
        spectra=spectra(outcome.purified, clamped, outcome.compressed),
        original_onnx_bytes=len(outcome.original_model),
        onnx_bytes=len(outcome.model),
        parity=outcome.parity,
        precision=outcome.lowered.summary(),
        latency=outcome.latency,
        evaluation=outcome.evaluation,
        gates=outcome.gates,
        target={"name": target.name, "description": target.description},
        stage_seconds=timed.seconds,
        peak_memory_mib=peak_memory_mib(),
        environment=describe_environment(gpu=gpu_name(settings.compute)),
        seed=settings.seed,
        command=command,
        settings_toml=changed_settings(settings),
    )


def _contents(
    outcome: Outcome, settings: PipelineSettings, target: Target, report: dict[str, JsonValue]
) -> BundleContents:
    kit: dict[str, bytes] = {}
    if target.runtime == "tensorrt":  # engines are built on the device: what does that goes along
        kit = kit_files(
            outcome.original_model,
            asdict(target),
            precision=settings.precision.format,
            batch=settings.export.batch,
        )
    return BundleContents(
        model=outcome.model,
        network=outcome.compressed,
        configuration=settings_as_json(settings),
        seed=settings.seed,
        target=asdict(target),
        golden_pixels=outcome.images.pixels[:GOLDEN_IMAGES],
        golden_tolerance=max(
            settings.parity.tolerance, GOLDEN_TOLERANCE.get(settings.precision.format, 0.0)
        ),
        measurements=report,
        page=lambda manifest, whole: render_html(
            manifest, whole, images=outcome.images, scan=outcome.scan
        ),
        reproducible_files={**trigger_files(outcome.scan), **kit},
    )
