"""Hold the outcome of a run, and turn it into a report's inputs and a bundle's contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from jaxtyping import Float
from torch import Tensor

from edgeclean.accuracy_goal import Forecasts
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.scan import trigger_success
from edgeclean.bundle.bundle import BundleContents
from edgeclean.bundle.handover import check_handover, handover_files
from edgeclean.bundle.kit import kit_files
from edgeclean.bundle.runtime_kit import has_kit, runtime_kit_files
from edgeclean.bundle.runtimes import BundledRuntime
from edgeclean.compression.finetune import left_out
from edgeclean.config import PipelineSettings
from edgeclean.devices.targets import Target
from edgeclean.environment import describe_environment
from edgeclean.gates import GateVerdict, Policy, judge_result, judge_scan, refuse_failed
from edgeclean.load.fitting import told
from edgeclean.measure.accuracy import Evaluation
from edgeclean.measure.latency import LatencyReport
from edgeclean.measure.runtimes import CheckedForm, FormInputs, Runtimes
from edgeclean.networks.compute import gpu_name
from edgeclean.networks.state import (
    FinetunedNetwork,
    JsonValue,
    LoadedNetwork,
    Network,
    PurifiedNetwork,
    ScaledNetwork,
    SyntheticImages,
    TruncatedNetwork,
    same_weights,
    settings_as_json,
)
from edgeclean.networks.structure import StructureReport
from edgeclean.report.layer_table import LayerRow, Spectrum, layer_rows, spectra
from edgeclean.report.page import render_html, trigger_files
from edgeclean.report.report import ReportInputs, changed_settings
from edgeclean.runner import peak_memory_mib
from exporters.onnx_check import open_onnx, opset_of
from exporters.parity import ParityRecord
from exporters.precision.lower import GOLDEN_TOLERANCE, LoweredModel

GOLDEN_IMAGES = 16
NO_RUNTIMES = Runtimes()


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
        forecasts: what purification and the whole run probably lost of the accuracy.
        runtimes: the network in the form of other runtimes, and how it did in each.
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
    forecasts: Forecasts
    runtimes: Runtimes = NO_RUNTIMES
    evaluation: Evaluation | None = None
    gates: tuple[GateVerdict, ...] = ()

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences that the reader of what was measured should know."""
        said = (self._still_there, self.scan.caveat, left_out(self.compressed))
        return (*filter(None, said), *self._of_latency)

    @property
    def _of_latency(self) -> tuple[str, ...]:
        """What is wrong with the measured times, or was not won by them."""
        said = []
        if self.latency.speedup_high < 1:
            said.append("The compressed network is slower than the original on this machine.")
        if not self.latency.steady:
            said.append("This machine was not steady: its times say little.")
        return *said, *(
            f"In {row['name']} the compressed network is slower than the original."
            for row in self.runtimes.rows
            if row["latency"] is not None and row["latency"]["speedup"] < 1
        )

    @property
    def _still_there(self) -> str | None:
        """Whether what the scan suspected is in the compressed network as it was found."""
        if not self.scan.suspects or not same_weights(self.original.module, self.purified.module):
            return None
        return (
            f"The scan suspects {', '.join(self.scan.suspicions)}, and purification changed no "
            "weight: what was found is in the compressed network as well, as far as compression "
            "leaves it."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedCheckpoint:
    """A network that was searched for a backdoor, and is as it came.

    Attributes:
        network: the network of the checkpoint.
        images: the synthetic images that the searches started from.
        report: what was searched and what was found, with the verdict.
    """

    network: LoadedNetwork
    images: SyntheticImages
    report: ScanReport


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedCheckpoint:
    """A network, and what a compression would make of each of its layers.

    Attributes:
        network: the network of the checkpoint.
        ratio: what the plan is for: the one that was asked, or the default, or the largest in reach
            where none was asked and the default is not.
        planned: the same, truncated to the ranks that the weights alone suggest.
        layers: a row for each layer: its shape, ranks, parameters and MACs before and after.
        spectra: the singular values of each layer that may be factored, as shares of the largest.
        structure: paths from the image to the logits that no layer learned.
    """

    network: LoadedNetwork
    ratio: float
    planned: TruncatedNetwork
    layers: tuple[LayerRow, ...]
    spectra: tuple[Spectrum, ...]
    structure: StructureReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedCheckpoint:
    """A network as ONNX, neither scanned nor purified nor compressed.

    Attributes:
        network: the network of the checkpoint.
        model: the bytes of the ONNX file, in the precision that the settings ask for.
        parity: how closely the file in float32 computes what the network does.
        lowered: how closely ``model`` agrees with the file in float32.
        forms: the same network in the form of other runtimes.
    """

    network: LoadedNetwork
    model: bytes
    parity: ParityRecord
    lowered: LoweredModel
    forms: tuple[CheckedForm, ...] = ()


def judged(compression: Compression, policy: Policy, evaluation: Evaluation | None) -> Compression:
    """Judge the gates of the policy, and return the compression with their verdicts.

    Raises:
        EdgecleanError: of the kind of the first gate that failed.
    """
    gates = judge_scan(policy, compression.scan)
    found = evaluation, len(compression.model), compression.latency
    gates += judge_result(policy, *found, compression.forecasts.compressed)
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
            *compression.caveats,
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
        runtimes=compression.runtimes.rows,
        evaluation=compression.evaluation,
        forecast=compression.forecasts.summary(),
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
    """Return the contents of the bundle, with a kit for what is built elsewhere.

    That is an engine, which the device builds, or what only the vendor's converter can make.

    Raises:
        EdgecleanError: the vendor's converter does not take the network.
    """
    kit: dict[str, bytes] = {}
    if target.runtime == "tensorrt":  # engines are built on the device, by the kit
        kit = kit_files(
            compression.original_model,
            asdict(target),
            precision=settings.precision.format,
            batch=settings.export.batch,
        )
    kit |= _runtime_kit(compression, settings, target)
    check_handover(compression.model, target)
    kit |= handover_files(target, _about(compression), compression.images.pixels)
    golden_tolerance = _golden_tolerance(settings)
    return BundleContents(
        model=compression.model,
        network=compression.compressed,
        configuration=settings_as_json(settings),
        seed=settings.seed,
        target=asdict(target),
        golden_pixels=compression.images.pixels[:GOLDEN_IMAGES],
        golden_tolerance=golden_tolerance,
        measurements=report,
        page=lambda manifest, whole: render_html(
            manifest, whole, images=compression.images, scan=compression.scan
        ),
        reproducible_files={**trigger_files(compression.scan), **kit},
        runtimes=tuple(bundled(one.form, golden_tolerance) for one in compression.runtimes.kept),
    )


def _runtime_kit(
    compression: Compression, settings: PipelineSettings, target: Target
) -> dict[str, bytes]:
    """Return the kit for the target's own runtime, where that is a wheel on a board's processor."""
    own = [one for one in compression.runtimes.kept if one.form.name == target.runtime]
    if target.kind != "cpu" or not own or not has_kit(target.runtime):
        return {}
    return runtime_kit_files(
        target.runtime,
        own[0].original,
        precision=own[0].form.precision,
        batch=settings.export.batch,
        tolerance=_golden_tolerance(settings),
    )


def _golden_tolerance(settings: PipelineSettings) -> float:
    """Return the largest relative difference from stored logits that is allowed elsewhere."""
    return max(settings.parity.tolerance, GOLDEN_TOLERANCE.get(settings.precision.format, 0.0))


def _about(compression: Compression) -> dict[str, JsonValue]:
    """Return what a hand-over kit says of the network, as the manifest says it."""
    spec = compression.compressed.spec
    return {
        "input_shape": list(spec.input_shape),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "opset": opset_of(open_onnx(compression.model)),
    }


def form_inputs(
    network: Network,
    model: bytes,
    lowered: LoweredModel,
    pixels: Float[Tensor, "n c h w"],
    settings: PipelineSettings,
) -> FormInputs:
    """Return what other runtimes' forms of a network are made of and judged by.

    Args:
        network: the network in PyTorch.
        model: its ONNX file in float32.
        lowered: the same in its final precision.
        pixels: [n, c, h, w] images in [0, 1], the golden ones first.
        settings: the settings of the run.
    """
    return FormInputs(
        network=network,
        model=model,
        lowered=lowered,
        pixels=pixels,
        golden=GOLDEN_IMAGES,
        parity=settings.parity,
        precision=settings.precision,
    )


def bundled(form: CheckedForm, tolerance: float) -> BundledRuntime:
    """Return a runtime's form of a network as a bundle holds it.

    Args:
        form: its files, checked.
        tolerance: the largest relative difference from its logits that is allowed elsewhere.
    """
    return BundledRuntime(
        name=form.name,
        version=form.version,
        made_by=form.made_by,
        precision=form.precision,
        computes=form.computes,
        reproducible=form.reproducible,
        files=form.files,
        golden=form.golden,
        tolerance=tolerance,
        arena_bytes=form.arena_bytes,
    )


def _warnings(structure: StructureReport) -> tuple[str, ...]:
    return tuple(
        f"The graph of the source holds {one.in_words()}. Purification changes weights, and does "
        "not remove it: do not use the network unless you know what the path is for."
        for one in structure.findings
    )
