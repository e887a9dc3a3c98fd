"""The stages in order. What each does, and may be told, is in its own module.

load -> synthesize -> scan -> purify -> decompose -> scale -> choose ranks -> truncate
     -> finetune -> export -> check parity -> measure -> write the bundle
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from edgeclean.bundles.atomic import HeldFolder
from edgeclean.bundles.bundle import Bundle, BundleContents, hold_output, write_bundle
from edgeclean.bundles.device_kit import kit_files
from edgeclean.config import PipelineSettings
from edgeclean.environment import describe_environment
from edgeclean.errors import BackdoorSuspectedError
from edgeclean.factors.decompose import decompose
from edgeclean.factors.scale import scale
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
from exporters.precision import GOLDEN_TOLERANCE, LoweredModel, check_precision, lower_precision

GOLDEN_IMAGES = 16


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
        model: the ONNX file, in its final precision.
        original_model: the original network's, to compare with.
        parity: of the ONNX file in float32 with the compressed network.
        lowered: how close the file in its final precision stays to the one in float32.
        latency: of both ONNX files, measured in turns.
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
    lowered: LoweredModel
    latency: LatencyReport


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
    code_folder: Path | None = None,
    progress: Progress = silent,
) -> WrittenOutcome:
    """Run every stage and write the bundle, which appears whole or not at all.

    Args:
        checkpoint: the stranger's file.
        spec: what the file does not say.
        output: the bundle's folder.
        settings: of every stage; `config.settings_for` makes them for a target.
        target: what the bundle is for; None for the one that the settings name.
        code_folder: what ``file.py:callable`` in the spec is relative to.
        progress: told of every stage that takes longer than a moment.

    Raises:
        EdgecleanError: what was wrong, of the kind that `errors` lists.
    """
    chosen = settings or PipelineSettings()
    device = target or load_target(chosen.target, jetpack=chosen.jetpack)
    require(device, opset=chosen.export.opset)
    check_precision(chosen.precision, chosen.export, device)
    timed = Stopwatch(progress)
    with hold_output(output) as held:
        original = timed(load_checkpoint, "Loading")(
            checkpoint, spec, limits=chosen.load, code_folder=code_folder
        )
        outcome = run_stages(original, chosen, timed=timed, progress=progress)
        again = command_line(checkpoint, spec, chosen)
        report = build_report(_evidence(outcome, chosen, device, timed, again))
        bundle = _write(held, outcome, chosen, device, report)
    return WrittenOutcome(
        outcome=outcome,
        bundle=bundle,
        report={**report, "manifest_sha256": bundle.manifest_sha256},
    )


def run_stages(
    original: LoadedNetwork,
    settings: PipelineSettings,
    *,
    timed: Stopwatch | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Every stage between the loaded network and the bundle; nothing is written."""
    chosen, seed = settings, settings.seed
    timed = timed or Stopwatch(progress)
    draw = timed(synthesize)
    images = draw(original, chosen.synthesize, seed=seed, progress=progress)
    found = timed(scan)(original, images, chosen.scan, seed=seed, progress=progress)
    _stop_if_suspected(found, chosen)
    purified = timed(purify)(original, images, found, chosen.purify, seed=seed, progress=progress)
    if not same_weights(original.module, purified.module):
        # Images of a backdoored network may carry its trigger; the purified teacher's answers to
        # them do not, and its own images add what the first ones miss.
        fresh = draw(purified, chosen.synthesize.recovery(), seed=seed + 1, progress=progress)
        images = joined(images, fresh)
    decomposed = timed(decompose)(purified, chosen.decompose, progress=progress)
    scaled = timed(scale)(decomposed, chosen.scale, progress=progress)
    plan = timed(choose_ranks)(scaled, chosen.ranks, images=images, progress=progress)
    truncated = timed(truncate)(scaled, plan, chosen.truncate, progress=progress)
    compressed = timed(finetune)(
        truncated, purified, images, chosen.finetune, seed=seed, progress=progress
    )
    export = timed(export_onnx, "Exporting")
    model, original_model = export(compressed, chosen.export), export(original, chosen.export)
    parity = timed(check_parity, "Checking parity")(compressed, model, images.pixels, chosen.parity)
    lowered = timed(lower_precision, "Lowering the precision")(
        model, compressed.spec, images.pixels, chosen.precision, progress=progress
    )
    latency = timed(measure_pair, "Measuring latency")(
        original_model, lowered.model, chosen.latency
    )
    return Outcome(
        original=original,
        purified=purified,
        scaled=scaled,
        compressed=compressed,
        images=images,
        scan=found,
        model=lowered.model,
        original_model=original_model,
        parity=parity,
        lowered=lowered,
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


def _stop_if_suspected(found: ScanReport, settings: PipelineSettings) -> None:
    if settings.fail_on_backdoor and found.verdict == "suspected":
        targets = sorted({suspect.target for suspect in found.suspects})
        raise BackdoorSuspectedError(
            f"a backdoor to class {', '.join(map(str, targets))} is suspected, and the policy "
            "forbids one; nothing was written. `edgeclean scan` shows the evidence; without "
            "--fail-on-backdoor the network is purified"
        )


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
        precision=outcome.lowered.summary(),
        latency=outcome.latency,
        target={"name": target.name, "description": target.description},
        stage_seconds=timed.seconds,
        peak_memory_mib=peak_memory_mib(),
        environment=describe_environment(),
        seed=settings.seed,
        command=command,
        settings_toml=changed_settings(settings),
    )


def _write(
    held: HeldFolder,
    outcome: Outcome,
    settings: PipelineSettings,
    target: Target,
    report: dict[str, JsonValue],
) -> Bundle:
    kit = {}
    if target.runtime == "tensorrt":  # engines are built on the device: what does that goes along
        kit = kit_files(
            outcome.original_model,
            asdict(target),
            precision=settings.precision.format,
            batch=settings.export.batch,
        )
    contents = BundleContents(
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
    return write_bundle(held, contents)
