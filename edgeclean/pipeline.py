"""The stages in order. What each does, and may be told, is in its own module.

load -> synthesize -> scan -> purify -> decompose -> scale -> choose ranks -> truncate
     -> finetune -> export -> check parity -> lower the precision -> measure -> write the bundle
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgeclean.accuracy_goal import (
    forecasts_of,
    refuse_not_kept,
    refuse_unforeseeable,
    with_ratio,
    yardstick_of,
)
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.purify import purify
from edgeclean.backdoor.scan import scan
from edgeclean.bundle.bundle import Bundle, hold_output, write_bundle
from edgeclean.bundle.handover import check_handover
from edgeclean.bundle.signing import Signer
from edgeclean.compression.clamp import scale
from edgeclean.compression.decompose import decompose
from edgeclean.compression.goals import FileSize
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.compression.plan import RankPlan, choose_ranks
from edgeclean.compression.resolution import check_reach, smaller_images_reach
from edgeclean.compression.truncate import truncate
from edgeclean.config import PipelineSettings, check_goal, for_one_target
from edgeclean.devices.profile_files import profile_names
from edgeclean.devices.targets import Target, load_target, require
from edgeclean.errors import RatioError, UsageError
from edgeclean.estimate import announce
from edgeclean.gates import (
    Policy,
    judge_scan,
    refuse_failed,
    refuse_larger,
    refuse_slower_than_planned,
)
from edgeclean.images.crops import require_photographs
from edgeclean.images.labelled import LabelledImages
from edgeclean.images.synthesize import joined, synthesize
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.measure.accuracy import evaluate
from edgeclean.measure.latency import LatencyReport, measure_pair
from edgeclean.measure.machine_table import table_of_this_machine
from edgeclean.measure.runtimes import (
    RuntimeInputs,
    Runtimes,
    convert_and_measure,
    forms_for,
    require_forms,
    require_runtimes,
)
from edgeclean.networks.compute import as_torch_comes, placed, require_compute
from edgeclean.networks.state import (
    FinetunedNetwork,
    JsonValue,
    LoadedNetwork,
    ModelSpec,
    PurifiedNetwork,
    ScaledNetwork,
    SyntheticImages,
    same_weights,
)
from edgeclean.networks.structure import read_structure
from edgeclean.outcome import (
    Compression,
    ExportedCheckpoint,
    InspectedCheckpoint,
    ScannedCheckpoint,
    contents_of,
    form_inputs,
    judged,
    report_inputs,
)
from edgeclean.progress import Progress, silent
from edgeclean.report.layer_table import layer_rows, spectra
from edgeclean.report.report import build_report, command_line
from edgeclean.runner import Cache, Runner
from edgeclean.shrinking import (
    recovered_network,
    refuse_slower_early,
    scaled_network,
    truncated_network,
)
from exporters.exportable import exportable
from exporters.file_size import foretell_size
from exporters.onnx_exporter import export_onnx
from exporters.parity import ParityRecord, check_parity
from exporters.precision.lower import LoweredModel, check_precision, lower_precision

NO_GATES = Policy()
PARITY_IMAGES = 32  # random ones, for an export that makes no others

Alongside = Callable[[LoadedNetwork], AbstractContextManager[None]]


def nothing_alongside(_network: LoadedNetwork) -> AbstractContextManager[None]:
    """A bundle that is put in place alone."""
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCompression:
    """What a run made, with the bundle that holds it.

    Attributes:
        compression: what was made.
        bundle: the files that were written.
        report: the content of ``report.json``.
    """

    compression: Compression
    bundle: Bundle
    report: dict[str, JsonValue]


@as_torch_comes()
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
    alongside: Alongside = nothing_alongside,
    progress: Progress = silent,
) -> WrittenCompression:
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
        alongside: given the network as soon as it is loaded, may refuse it, and returns what is
            entered when the bundle is whole and left when it is in place, or with the error.
        progress: told of every stage that takes longer than a moment.

    Raises:
        EdgecleanError: what was wrong, of the kind that `errors` lists.
    """
    chosen, device = for_one_target(settings, target)
    require(device, opset=chosen.export.opset)
    require_compute(chosen.compute)
    if chosen.finetune.steps > 0 and chosen.finetune.photograph_share > 0:
        require_photographs()
    check_precision(chosen.precision, chosen.export, device)
    check_goal(chosen, device, latency_table)
    require_runtimes(chosen.runtime, device, chosen.precision.format, chosen.latency)
    if policy.max_accuracy_drop is not None and labelled is None:
        raise UsageError(
            "max-accuracy-drop needs labelled images to measure accuracy on; give --evaluate"
        )
    runner = Runner(cache, progress)
    with hold_output(output) as held:
        original, model = open_network(checkpoint, spec, chosen, code_folder, runner)
        check_handover(model, device)  # now: what is added is Conv, and Resize if listed
        _check_reach(original, model, chosen, latency_table)
        refuse_unforeseeable(original.spec, chosen, policy)
        beside = alongside(original)
        original = placed(original, chosen.compute)
        table = _table(latency_table, original, chosen, runner)
        announce(progress, original, chosen)
        asked = original, chosen, device, model
        compression = run_stages(*asked, table=table, policy=policy, runner=runner)
        evaluation = None
        if labelled is not None:
            models = compression.original_model, compression.model
            evaluation = runner("evaluate", evaluate, *models, labelled, original.spec)
        compression = judged(compression, policy, evaluation)
        own = None if device.name in profile_names() else f"{device.name}.toml"
        of_run = checkpoint, spec, chosen, own, torch.get_num_threads()
        command = command_line(*of_run, table=latency_table is not None)
        report = build_report(report_inputs(compression, chosen, device, runner.seconds, command))
        contents = contents_of(compression, chosen, device, report)
        bundle = write_bundle(held, contents, signer=signer, alongside=beside)
    whole = {**report, "manifest_sha256": bundle.manifest_sha256}
    return WrittenCompression(compression=compression, bundle=bundle, report=whole)


def open_network(
    checkpoint: Path,
    spec: ModelSpec,
    settings: PipelineSettings,
    code_folder: Path | None,
    run: Runner,
) -> tuple[LoadedNetwork, bytes]:
    """Load the network, on the CPU, in a form that can be exported; return it with its ONNX file.

    Raises:
        EdgecleanError: see `load_checkpoint`.
    """
    limits = settings.load
    network = run("load", load_checkpoint, checkpoint, spec, limits=limits, code_folder=code_folder)
    return run("load", exportable, network, settings.export, settings.parity, limits)


def _table(
    given: LatencyTable | None, original: LoadedNetwork, settings: PipelineSettings, run: Runner
) -> LatencyTable | None:
    """The latency table that was given, or one of this machine where the goal needs one."""
    if given is not None or not settings.ranks.needs_table:
        return given
    kept = None if run.cache is None else run.cache.store
    timed = original, settings.ranks, settings.latency
    return run("latency table", table_of_this_machine, *timed, kept=kept)


def _check_reach(
    original: LoadedNetwork, model: bytes, settings: PipelineSettings, table: LatencyTable | None
) -> FileSize | None:
    """Refuse now what would be refused after minutes; what a size budget needs, if there is one."""
    file, ranks = None, settings.ranks
    if ranks.size_budget is not None:
        file = foretell_size(original, model, settings.precision.format)
    check_reach(original, ranks, keep=settings.decompose.keep, table=table, file=file)
    return file


def run_stages(  # noqa: PLR0913 - what a run is of, and what it tells
    original: LoadedNetwork,
    settings: PipelineSettings,
    target: Target | None = None,
    original_model: bytes | None = None,
    *,
    table: LatencyTable | None = None,
    policy: Policy = NO_GATES,
    runner: Runner | None = None,
) -> Compression:
    """Every stage between the loaded network and the bundle; nothing but the cache is written.

    Args:
        original: as it was loaded.
        settings: of every stage.
        target: whose runtimes are converted for; None for the one that the settings name.
        original_model: its ONNX file; None writes it, before what takes minutes.
        table: what forms of layers take on the device; None plans without.
        policy: whose gate on the scan refuses before what takes minutes.
        runner: times the stages, tells of them and keeps their results; None keeps nothing.

    Raises:
        UsageError: nothing of the network would be decomposed.
        RatioError: the goal is out of reach; where shapes decide that, before what takes minutes.
        BackdoorSuspectedError: the policy forbids what the scan suspects.
        BudgetError: with a latency table of this machine, the network is slower than the original;
            or the file is above the size budget.
        AccuracyGateError: a forecast is needed and does not apply, or the goal is an accuracy that
            the finished network did not keep.
    """
    run, asked = runner or Runner(), settings.ranks.keep_accuracy
    if original_model is None:
        original_model = run("export", export_onnx, original, settings.export)
    file = _check_reach(original, original_model, settings, table)
    stick = yardstick_of(original, settings, policy, run)
    found, purified, images = scan_and_purify(original, settings, policy, run)
    scaled = scaled_network(purified, images, settings, run)
    networks = original, purified, scaled
    settings, probes = with_ratio(settings, stick, networks, images, table, run)
    truncated = truncated_network(scaled, images, settings, table, file, run)
    refuse_slower_early(original, truncated, settings, table, run)
    made = original, purified, truncated, images, settings
    compressed, images = recovered_network(*made, run)
    device = target or load_target(settings.target, jetpack=settings.jetpack)
    files = _exported(original_model, compressed, images, settings, device, run)
    parity, lowered, latency, runtimes = files
    refuse_slower_than_planned(table, latency, runtimes)
    forecasts = run("forecast", forecasts_of, stick, purified, lowered.model, probes)
    refuse_not_kept(asked, forecasts.compressed)
    return Compression(
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
        runtimes=runtimes,
        forecasts=forecasts,
    )


def scan_and_purify(
    original: LoadedNetwork, settings: PipelineSettings, policy: Policy, run: Runner
) -> tuple[ScanReport, PurifiedNetwork, SyntheticImages]:
    """What all goals and targets of a network share; the images are those that it is tuned on.

    Raises:
        BackdoorSuspectedError: the policy forbids what the scan suspects.
    """
    seed = settings.seed
    images = run.once("synthesize", synthesize, original, settings.synthesize, seed=seed)
    found = run.once("scan", scan, original, images, settings.scan, seed=seed)
    refuse_failed(judge_scan(policy, found))
    purified = run.once("purify", purify, original, images, found, settings.purify, seed=seed)
    if same_weights(original.module, purified.module):
        return found, purified, images
    # Images of a backdoored network may carry its trigger; the purified teacher's answers to them
    # do not, and its own images add what the first ones miss.
    more = settings.synthesize.recovery()
    own = run.once("synthesize", synthesize, purified, more, seed=seed + 1)
    return found, purified, joined(images, own)


def _exported(
    original_model: bytes,
    compressed: FinetunedNetwork,
    images: SyntheticImages,
    settings: PipelineSettings,
    target: Target,
    run: Runner,
) -> tuple[ParityRecord, LoweredModel, LatencyReport, Runtimes]:
    """Of the compressed network's files how close they are, in what precision, and how fast."""
    pixels, spec = images.pixels, compressed.spec
    model = run("export", export_onnx, compressed, settings.export)
    parity = run("parity", check_parity, compressed, model, pixels, settings.parity)
    lowered = run("precision", lower_precision, model, spec, pixels, settings.precision)
    refuse_larger(settings.ranks.size_budget, len(lowered.model))
    latency = run("latency", measure_pair, original_model, lowered.model, settings.latency)
    given = RuntimeInputs(
        form=form_inputs(compressed, model, lowered, pixels, settings),
        original=original_model,
        latency=settings.latency,
        measured=latency,
    )
    runtimes = run("runtimes", convert_and_measure, settings.runtime, target, given)
    return parity, lowered, latency, runtimes


@as_torch_comes()
def scan_checkpoint(
    checkpoint: Path,
    spec: ModelSpec,
    settings: PipelineSettings | None = None,
    *,
    code_folder: Path | None = None,
    progress: Progress = silent,
) -> ScannedCheckpoint:
    """Search a network for a backdoor, without data and without changing it.

    Args:
        checkpoint: the file of weights, or an ONNX network.
        spec: what the file does not say.
        settings: of every stage; None for the defaults.
        code_folder: what ``file.py:callable`` in the spec is relative to.
        progress: told of every stage that takes longer than a moment.

    Raises:
        InputRejectedError: the checkpoint cannot be accepted.
        UsageError: the architecture is unknown.
        NotFiniteError: a stage came out with NaN or infinity.
        ToolchainError: the settings ask for a GPU that is not there.
    """
    chosen = settings or PipelineSettings()
    require_compute(chosen.compute)
    run, seed = Runner(progress=progress), chosen.seed
    network = load_checkpoint(checkpoint, spec, limits=chosen.load, code_folder=code_folder)
    network = placed(network, chosen.compute)
    announce(progress, network, chosen, only_scan=True)
    images = run("synthesize", synthesize, network, chosen.synthesize, seed=seed)
    report = run("scan", scan, network, images, chosen.scan, seed=seed)
    return ScannedCheckpoint(network=network, images=images, report=report)


@as_torch_comes()
def inspect_checkpoint(
    checkpoint: Path,
    spec: ModelSpec,
    settings: PipelineSettings | None = None,
    *,
    code_folder: Path | None = None,
    progress: Progress = silent,
) -> InspectedCheckpoint:
    """List a network's layers, what would become of each, and what its structure says.

    The ranks are chosen from the weights alone; `compress` also asks the synthetic images, so its
    ranks may differ a little.

    Args:
        checkpoint: the file of weights, or an ONNX network.
        spec: what the file does not say.
        settings: of every stage; None for the defaults.
        code_folder: what ``file.py:callable`` in the spec is relative to.
        progress: told of every stage that takes longer than a moment.

    Raises:
        InputRejectedError: the checkpoint cannot be accepted.
        UsageError: the architecture is unknown, or the settings name a layer that is not there.
        RatioError: the ratio is out of reach.
    """
    chosen, run = settings or PipelineSettings(), Runner(progress=progress)
    network = load_checkpoint(checkpoint, spec, limits=chosen.load, code_folder=code_folder)
    decomposed = run("decompose", decompose, network, chosen.decompose)
    scaled = run("scale", scale, decomposed, chosen.scale)
    plan = _planned_by_weights(network, scaled, chosen, run)
    planned = run("truncate", truncate, scaled, plan, chosen.truncate)
    return InspectedCheckpoint(
        network=network,
        ratio=plan.ratio_asked,
        planned=planned,
        layers=layer_rows(network, planned),
        spectra=spectra(network, None, planned),
        structure=read_structure(network.module, spec.input_shape),
    )


def _planned_by_weights(
    network: LoadedNetwork, scaled: ScaledNetwork, settings: PipelineSettings, run: Runner
) -> RankPlan:
    """Choose ranks from the weights alone; where those do not suffice, say what `compress` has.

    Who asked for no ratio wants to see the network: the largest in reach stands for the default.
    """
    ranks, keep = settings.ranks, settings.decompose.keep
    try:
        return run("ranks", choose_ranks, scaled, ranks)
    except RatioError as refusal:
        if not ranks.has_goal and refusal.nearest is not None:
            return run("ranks", choose_ranks, scaled, replace(ranks, ratio=refusal.nearest))
        if ranks.may_resize and smaller_images_reach(network, ranks, keep=keep):
            raise RatioError(
                f"{refusal}. compress can meet it, for it may also let the network see its images "
                "smaller; inspect plans layers alone"
            ) from None
        raise


@as_torch_comes()
def export_checkpoint(
    checkpoint: Path,
    spec: ModelSpec,
    settings: PipelineSettings | None = None,
    *,
    code_folder: Path | None = None,
    progress: Progress = silent,
) -> ExportedCheckpoint:
    """Turn a network into checked ONNX, as it is; nothing is written.

    Args:
        checkpoint: the file of weights, or an ONNX network.
        spec: what the file does not say.
        settings: of every stage; None for the defaults.
        code_folder: what ``file.py:callable`` in the spec is relative to.
        progress: told of every stage that takes longer than a moment.

    Raises:
        InputRejectedError: the checkpoint cannot be accepted, or ONNX cannot express the network.
        UsageError: the architecture is unknown, or the opset cannot hold the precision.
        ParityError: the file, or that of a runtime, does not compute what the network does.
        ToolchainError: a runtime is not installed, or crashed.
    """
    chosen, run = settings or PipelineSettings(), Runner(progress=progress)
    require_forms(chosen.runtime, chosen.precision.format)
    network = run(
        "load", load_checkpoint, checkpoint, spec, limits=chosen.load, code_folder=code_folder
    )
    network, model = run("export", exportable, network, chosen.export, chosen.parity, chosen.load)
    generator = torch.Generator().manual_seed(chosen.seed)
    pixels = torch.rand(PARITY_IMAGES, *spec.input_shape, generator=generator)
    parity = run("parity", check_parity, network, model, pixels, chosen.parity)
    if chosen.precision.format != "fp32":  # calibrated on images that look like the network's own
        drawn = run("synthesize", synthesize, network, chosen.synthesize, seed=chosen.seed)
        pixels = drawn.pixels
    lowered = run("precision", lower_precision, model, spec, pixels, chosen.precision)
    given = form_inputs(network, model, lowered, pixels, chosen)
    forms = run("runtimes", forms_for, chosen.runtime, given)
    return ExportedCheckpoint(
        network=network, model=lowered.model, parity=parity, lowered=lowered, forms=forms
    )
