"""Hold the outcome of a run, and turn it into a report's inputs and a bundle's contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.scan import trigger_success
from edgeclean.bundle.bundle import BundleContents
from edgeclean.bundle.kit import kit_files
from edgeclean.config import PipelineSettings
from edgeclean.devices.targets import Target
from edgeclean.environment import describe_environment
from edgeclean.gates import GateVerdict, Policy, judge_result, judge_scan, refuse_failed
from edgeclean.load.fitting import told
from edgeclean.measure.accuracy import Evaluation
from edgeclean.measure.latency import LatencyReport
from edgeclean.networks.compute import gpu_name
from edgeclean.networks.state import (
    FinetunedNetwork,
    JsonValue,
    LoadedNetwork,
    Network,
    PurifiedNetwork,
    ScaledNetwork,
    SyntheticImages,
    settings_as_json,
)
from edgeclean.networks.structure import StructureReport
from edgeclean.report.layer_table import layer_rows, spectra
from edgeclean.report.page import render_html, trigger_files
from edgeclean.report.report import ReportInputs, changed_settings
from edgeclean.runner import peak_memory_mib
from exporters.parity import ParityRecord
from exporters.precision.lower import GOLDEN_TOLERANCE, LoweredModel

GOLDEN_IMAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """The outcome of a run.

    Attributes:
        original: the network as it came.
        purified: the purified network, the teacher in all later stages.
        scaled: the network decomposed and clamped, not yet truncated.
        compressed: the network that was exported.
        images: the synthetic images that the compressed network was tuned on.
        scan: the scan of the original.
        model: the ONNX file, in its final precision.
        original_model: the original network's ONNX file, to compare with.
        parity: agreement of the ONNX file in float32 with the compressed network.
        lowered: agreement of the file in its final precision with the one in float32.
        latency: latencies of both ONNX files, measured in turns.
        evaluation: accuracy of both on the user's images; None if none were given.
        gates: the verdict on each gate of the policy; all passed.
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
    evaluation: Evaluation | None = None
    gates: tuple[GateVerdict, ...] = ()


def judged(compression: Compression, policy: Policy, evaluation: Evaluation | None) -> Compression:
    """Judge the gates of the policy, and return the compression with their verdicts.

    Raises:
        EdgecleanError: of the kind of the first gate that failed.
    """
    gates = judge_scan(policy, compression.scan)
    gates += judge_result(policy, evaluation, len(compression.model), compression.latency)
    refuse_failed(gates)
    return replace(compression, evaluation=evaluation, gates=gates)


def report_inputs(
    compression: Compression,
    settings: PipelineSettings,
    target: Target,
    seconds: Mapping[str, float],
    command: str,
) -> ReportInputs:
    """Return the inputs of the run's report.

    Args:
        compression: the outcome of the run.
        settings: the settings of the run.
        target: the target of the run.
        seconds: wall time by stage, in order.
        command: command line that repeats the run, without paths.
    """
    clamped = compression.scaled if compression.scaled.history[-1].notes["scaled"] else None
    networks: dict[str, Network] = {
        "original": compression.original,
        "purified": compression.purified,
        "compressed": compression.compressed,
    }
    return ReportInputs(
        original=compression.original,
        purified=compression.purified,
        compressed=compression.compressed,
        images=compression.images,
        scan=compression.scan,
        warnings=(
            *_warnings(compression.scan.structure),
            *filter(None, [compression.scan.caveat]),
            *told(compression.original.history[0].notes),
        ),
        trigger_success=trigger_success(compression.scan, networks, compression.images.pixels),
        layers=layer_rows(compression.original, compression.compressed),
        spectra=spectra(compression.purified, clamped, compression.compressed),
        original_onnx_bytes=len(compression.original_model),
        onnx_bytes=len(compression.model),
        parity=compression.parity,
        precision=compression.lowered.summary(),
        latency=compression.latency,
        evaluation=compression.evaluation,
        gates=compression.gates,
        target={"name": target.name, "description": target.description},
        stage_seconds=seconds,
        peak_memory_mib=peak_memory_mib(),
        environment=describe_environment(gpu=gpu_name(settings.compute)),
        seed=settings.seed,
        command=command,
        settings_toml=changed_settings(settings),
    )


def contents_of(
    compression: Compression,
    settings: PipelineSettings,
    target: Target,
    report: dict[str, JsonValue],
) -> BundleContents:
    """Return the contents of the bundle, with a kit for a target that builds its own engines."""
    kit: dict[str, bytes] = {}
    if target.runtime == "tensorrt":  # engines are built on the device, by the kit
        kit = kit_files(
            compression.original_model,
            asdict(target),
            precision=settings.precision.format,
            batch=settings.export.batch,
        )
    return BundleContents(
        model=compression.model,
        network=compression.compressed,
        configuration=settings_as_json(settings),
        seed=settings.seed,
        target=asdict(target),
        golden_pixels=compression.images.pixels[:GOLDEN_IMAGES],
        golden_tolerance=max(
            settings.parity.tolerance, GOLDEN_TOLERANCE.get(settings.precision.format, 0.0)
        ),
        measurements=report,
        page=lambda manifest, whole: render_html(
            manifest, whole, images=compression.images, scan=compression.scan
        ),
        reproducible_files={**trigger_files(compression.scan), **kit},
    )


def _warnings(structure: StructureReport) -> tuple[str, ...]:
    return tuple(
        f"The graph of the source holds {one.in_words()}. Purification changes weights, and does "
        "not remove it: do not use the network unless you know what the path is for."
        for one in structure.findings
    )
