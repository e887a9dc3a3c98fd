"""Build the report of one run: a JSON document with a schema, which `report.page` shows.

It holds measurements, so it differs from run to run; it names the manifest, which does not. It says
how the run is repeated, too: one command, and the settings that are not the defaults.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeclean.backdoor.findings import ScanReport
from edgeclean.compression.finetune import photographs_seen
from edgeclean.config import PipelineSettings, non_default, settings_from, to_toml
from edgeclean.effort import lengths_of
from edgeclean.environment import Environment
from edgeclean.files.schema import validator
from edgeclean.files.text import printable, without_folder
from edgeclean.gates import GateVerdict
from edgeclean.measure.accuracy import Evaluation
from edgeclean.measure.latency import LatencyReport
from edgeclean.networks.resized import Resized
from edgeclean.networks.state import (
    JsonValue,
    ModelSpec,
    Network,
    SyntheticImages,
    same_weights,
)
from edgeclean.report.layer_table import LayerRow, Spectrum
from exporters.parity import ParityRecord

FORMAT = "edgeclean-report-1"
TABLE_NAME = "latency-table.json"
CONFIG_NAME = "edgeclean.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInputs:
    """The results of a run as its stages returned them.

    Attributes:
        original: the network as it came.
        purified: the network after purification; the same weights where nothing was changed.
        compressed: the network that was exported.
        images: the synthetic images that the compressed network was tuned on.
        scan: the scan of the original.
        layers: rows of `layer_table.layer_rows`.
        spectra: spectra of `layer_table.spectra`.
        original_onnx_bytes: size of the original's ONNX file, exported in the same way.
        onnx_bytes: size of the compressed network's ONNX file.
        parity: agreement of the compressed network with its ONNX file in float32.
        precision: `LoweredModel.summary`; None where it was not lowered.
        latency: latencies of both ONNX files, measured in turns; None where none were measured.
        runtimes: rows of `edgeclean.measure.runtimes.Runtimes`; empty for ONNX Runtime alone.
        target: name and description of the target.
        stage_seconds: wall time by stage, in order.
        peak_memory_mib: peak memory of this process.
        environment: the machine and the versions of its software.
        seed: seed of the whole run.
        command: command line that repeats the run, without paths.
        settings_toml: the settings that are not the defaults, as a configuration file.
        warnings: sentences that the reader should know.
        evaluation: accuracy on the user's images; None if none were given.
        forecast: `edgeclean.accuracy_goal.Forecasts.summary`.
        gates: the verdict on each gate of the policy.
        trigger_success: success of each suspect's trigger on the three networks
            (`edgeclean.backdoor.scan.trigger_success`).
    """

    original: Network
    purified: Network
    compressed: Network
    images: SyntheticImages
    scan: ScanReport
    layers: tuple[LayerRow, ...]
    spectra: tuple[Spectrum, ...]
    original_onnx_bytes: int
    onnx_bytes: int
    parity: ParityRecord
    latency: LatencyReport | None
    target: Mapping[str, str]
    stage_seconds: Mapping[str, float]
    peak_memory_mib: float
    environment: Environment
    seed: int
    command: str
    settings_toml: str
    warnings: tuple[str, ...] = ()
    evaluation: Evaluation | None = None
    forecast: Mapping[str, JsonValue] | None = None
    gates: tuple[GateVerdict, ...] = ()
    precision: Mapping[str, JsonValue] | None = None
    trigger_success: tuple[Mapping[str, float], ...] = ()
    runtimes: tuple[Mapping[str, JsonValue], ...] = ()


def build_report(evidence: ReportInputs) -> dict[str, JsonValue]:
    """Return the report without ``manifest_sha256``, which `bundle.write_bundle` adds.

    With it, the report keeps to ``schemas/report.schema.json``; see `check_report`.
    """
    original, compressed = evidence.original, evidence.compressed
    first, last = original.history[0], compressed.history[-1]
    onnx_bytes = {"original": evidence.original_onnx_bytes, "compressed": evidence.onnx_bytes}
    document = {
        "format": FORMAT,
        "seed": evidence.seed,
        "target": dict(evidence.target),
        "network": {
            **asdict(original.spec),
            "architecture": without_folder(original.spec.architecture),
            "source_sha256": original.source_sha256,
        },
        "size": {
            "params": {"original": first.params, "compressed": last.params},
            "macs": {"original": first.macs, "compressed": last.macs},
            "onnx_bytes": onnx_bytes,
        },
        "resolution": _resolution(compressed),
        "scan": evidence.scan.summary(),
        "trigger_success": [dict(shares) for shares in evidence.trigger_success],
        "purify": _purification(original, evidence.purified),
        "parity": asdict(evidence.parity),
        "precision": None if evidence.precision is None else dict(evidence.precision),
        "latency": None if evidence.latency is None else asdict(evidence.latency),
        "runtimes": [dict(row) for row in evidence.runtimes],
        "evaluation": None if evidence.evaluation is None else asdict(evidence.evaluation),
        "forecast": None if evidence.forecast is None else dict(evidence.forecast),
        "gates": [asdict(verdict) for verdict in evidence.gates],
        "latency_table": _latency_table(compressed),
        "layers": [asdict(row) for row in evidence.layers],
        "spectra": [asdict(spectrum) for spectrum in evidence.spectra],
        "images": _images(evidence),
        "stages": _stages(compressed, evidence.stage_seconds),
        "peak_memory_mib": evidence.peak_memory_mib,
        "environment": asdict(evidence.environment),
        "reproduce": {"command": evidence.command, "settings_toml": evidence.settings_toml},
        "warnings": list(evidence.warnings),
    }
    plain: dict[str, JsonValue] = json.loads(json.dumps(document, allow_nan=False))
    return plain


def check_report(document: Mapping[str, JsonValue]) -> None:
    """Check a whole report against ``schemas/report.schema.json``.

    Raises:
        jsonschema.ValidationError: the report does not keep to the schema.
    """
    validator("report").validate(document)


def si_number(count: int) -> str:
    """Write a count with three digits and a prefix: 1234567 as "1.23 M"."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= 0.9995 * size:
            return f"{count / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{count:g}"


def byte_size(count: int) -> str:
    """Write a number of bytes with three digits: 1048576 as "1.05 MB"."""
    number = si_number(count)
    return f"{number}B" if number[-1].isalpha() else f"{number} B"


def command_line(
    checkpoint: Path,
    spec: ModelSpec,
    settings: PipelineSettings,
    target_file: str | None,
    threads: int,
    *,
    table: bool = False,
) -> str:
    """Return the command line of a run, with file names for paths: a report names no machine.

    It names the threads of PyTorch, which decide the bytes: by the option where that says the same
    of the measurement too.

    Args:
        checkpoint: the network's file.
        spec: what was said of it.
        settings: of the run.
        target_file: a name for the file of a target that is not shipped; None for one that is.
        threads: PyTorch's.
        table: whether ranks were chosen by a latency table of the user's.
    """
    by_option = threads == settings.latency.threads
    words = [] if by_option else [f"OMP_NUM_THREADS={threads}"]
    words += ["edgeclean", "compress", checkpoint.name or checkpoint.resolve().name]
    words += ["--arch", without_folder(spec.architecture)]
    words += ["--input-shape", "x".join(str(side) for side in spec.input_shape)]
    words += ["--classes", str(spec.classes)]
    words += [f"--mean={','.join(str(number) for number in spec.mean)}"]
    words += [f"--std={','.join(str(number) for number in spec.std)}"]
    if changed_settings(settings):
        words += ["--config", CONFIG_NAME]
    words += ["--threads", str(threads)] if by_option else []
    words += [] if target_file is None else ["--target-file", target_file]
    words += ["--latency-table", TABLE_NAME] if table else []
    return printable(shlex.join([*words, "-o", "build"]))


def changed_settings(settings: PipelineSettings) -> str:
    """Return the settings that are not the defaults as a configuration file; "" for none.

    Settings that follow from the effort are left out: its name stands for them.
    """
    level = settings_from(PipelineSettings, lengths_of(settings.effort))
    return to_toml(non_default(settings, level))


def _purification(original: Network, purified: Network) -> dict[str, JsonValue]:
    changed = not same_weights(original.module, purified.module)
    for record in reversed(purified.history):
        if record.stage == "purify":
            return {
                "changed": changed,
                "settings": dict(record.settings),
                "notes": dict(record.notes),
            }
    return {"changed": changed, "settings": {}, "notes": {}}


def _latency_table(compressed: Network) -> JsonValue:
    """Return the facts of the table that ranks were chosen by, which truncation recorded."""
    tables = (record.notes.get("latency_table") for record in compressed.history)
    return next((table for table in tables if table is not None), None)


def _images(evidence: ReportInputs) -> dict[str, JsonValue]:
    """Return what the compressed network was tuned on: synthetic images, and crops beside them."""
    return {
        "origin": evidence.images.origin,
        "count": len(evidence.images),
        "photographs": photographs_seen(evidence.compressed),
    }


def _resolution(compressed: Network) -> JsonValue:
    """Return the height and width at which the layers see the images; None for those given."""
    module = compressed.module
    return [*module.resize.size] if isinstance(module, Resized) else None


def _stages(compressed: Network, seconds: Mapping[str, float]) -> list[dict[str, JsonValue]]:
    """Return every timed stage in order, with the size of the network where it made one."""
    records = {record.stage: record for record in compressed.history}
    return [
        {
            "stage": stage,
            "params": records[stage].params if stage in records else None,
            "macs": records[stage].macs if stage in records else None,
            "seconds": elapsed,
        }
        for stage, elapsed in seconds.items()
    ]
