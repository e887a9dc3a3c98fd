"""What a run made, and that as the evidence of a report and as the contents of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from edgeclean.bundles.bundle import BundleContents
from edgeclean.bundles.device_kit import kit_files
from edgeclean.compute import gpu_name
from edgeclean.config import PipelineSettings
from edgeclean.environment import describe_environment
from edgeclean.gates.evaluation import Evaluation
from edgeclean.gates.policy import Policy
from edgeclean.gates.verdicts import GateVerdict, judge_result, judge_scan, refuse_failed
from edgeclean.reports.layer_table import layer_rows, spectra
from edgeclean.reports.page import render_html, trigger_files
from edgeclean.reports.report import Evidence
from edgeclean.reports.reproduce import changed_settings
from edgeclean.runner import peak_memory_mib
from edgeclean.runtime.latency import LatencyReport
from edgeclean.scan import ScanReport
from edgeclean.scan.aftermath import trigger_success
from edgeclean.states import (
    FinetunedNetwork,
    JsonValue,
    LoadedNetwork,
    Network,
    PurifiedNetwork,
    ScaledNetwork,
    SyntheticImages,
    settings_as_json,
)
from edgeclean.targets.targets import Target
from exporters.parity import ParityRecord
from exporters.precision import GOLDEN_TOLERANCE, LoweredModel

GOLDEN_IMAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
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
    lowered: LoweredModel
    latency: LatencyReport
    evaluation: Evaluation | None = None
    gates: tuple[GateVerdict, ...] = ()


def judged(result: Result, policy: Policy, evaluation: Evaluation | None) -> Result:
    """The result with its verdicts, all of which passed.

    Raises:
        EdgecleanError: of the kind of the first gate that failed.
    """
    gates = judge_scan(policy, result.scan)
    gates += judge_result(policy, evaluation, len(result.model), result.latency)
    refuse_failed(gates)
    return replace(result, evaluation=evaluation, gates=gates)


def evidence_of(
    result: Result,
    settings: PipelineSettings,
    target: Target,
    seconds: Mapping[str, float],
    command: str,
) -> Evidence:
    """All that the report tells of a run.

    Args:
        result: what it made.
        settings: that it was made with.
        target: what it is for.
        seconds: wall time by stage, in order.
        command: how to run it again, without paths.
    """
    clamped = result.scaled if result.scaled.history[-1].notes["scaled"] else None
    networks: dict[str, Network] = {
        "original": result.original,
        "purified": result.purified,
        "compressed": result.compressed,
    }
    return Evidence(
        original=result.original,
        purified=result.purified,
        compressed=result.compressed,
        images=result.images,
        scan=result.scan,
        trigger_success=trigger_success(result.scan, networks, result.images.pixels),
        layers=layer_rows(result.original, result.compressed),
        spectra=spectra(result.purified, clamped, result.compressed),
        original_onnx_bytes=len(result.original_model),
        onnx_bytes=len(result.model),
        parity=result.parity,
        precision=result.lowered.summary(),
        latency=result.latency,
        evaluation=result.evaluation,
        gates=result.gates,
        target={"name": target.name, "description": target.description},
        stage_seconds=seconds,
        peak_memory_mib=peak_memory_mib(),
        environment=describe_environment(gpu=gpu_name(settings.compute)),
        seed=settings.seed,
        command=command,
        settings_toml=changed_settings(settings),
    )


def contents_of(
    result: Result, settings: PipelineSettings, target: Target, report: dict[str, JsonValue]
) -> BundleContents:
    """The files of the bundle, with what goes along to a device that builds its own engines."""
    kit: dict[str, bytes] = {}
    if target.runtime == "tensorrt":  # engines are built on the device: what does that goes along
        kit = kit_files(
            result.original_model,
            asdict(target),
            precision=settings.precision.format,
            batch=settings.export.batch,
        )
    return BundleContents(
        model=result.model,
        network=result.compressed,
        configuration=settings_as_json(settings),
        seed=settings.seed,
        target=asdict(target),
        golden_pixels=result.images.pixels[:GOLDEN_IMAGES],
        golden_tolerance=max(
            settings.parity.tolerance, GOLDEN_TOLERANCE.get(settings.precision.format, 0.0)
        ),
        measurements=report,
        page=lambda manifest, whole: render_html(
            manifest, whole, images=result.images, scan=result.scan
        ),
        reproducible_files={**trigger_files(result.scan), **kit},
    )
