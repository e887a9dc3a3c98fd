"""The networks of a run in the runtimes that its target uses: converted, checked and measured.

For each runtime the compressed network is converted in float32 and compared with PyTorch on the
golden images; in a lowered precision it is converted once more, and compared with the float32 ONNX
file on synthetic images that nothing was calibrated on. Original and compressed are then measured
in turns in that runtime. A runtime that was asked for by name must do all of it; of those that
"fastest" tries, one that does not is left out, and the record says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from edgeclean.child.parcel import Parcel
from edgeclean.devices.targets import Target
from edgeclean.errors import EdgecleanError, ParityError, UsageError
from edgeclean.files.text import shown
from edgeclean.measure.latency import LatencyReport, LatencySettings
from edgeclean.measure.runtime_latency import measure_runtime_pair
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import JsonValue, Network
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting
from exporters import EXPORTERS
from exporters.confined_runtime import ConfinedExporter, HeldSettings
from exporters.parity import ParityRecord, ParitySettings, compare_with_pytorch
from exporters.precision.lower import LoweredModel, PrecisionSettings, split_images
from exporters.precision.sensitivity import Agreement, compare_logits
from exporters.protocol import confined_exporter
from exporters.session import OnnxSession

FASTEST, ONNX_RUNTIME, TENSORRT = "fastest", "onnxruntime", "tensorrt"
# These take model.onnx as it is; the second builds its engine on the device.
WITHOUT_FILES = (ONNX_RUNTIME, TENSORRT)
CONVERTED = tuple(name for name in EXPORTERS if name not in WITHOUT_FILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeChoice(Settings):
    """The runtimes that a bundle has files for.

    Attributes:
        names: of runtimes; "fastest" alone measures all that are installed and keeps the fastest
            one whose parity holds; empty for the target's own.
    """

    names: tuple[str, ...] = setting((), entries=(0, 20), longest=100)

    def check_together(self) -> None:
        """Refuse a name that nobody knows, and "fastest" beside others.

        Raises:
            UsageError: one of these was given.
        """
        for name in self.names:
            if name not in (*EXPORTERS, FASTEST):
                raise UsageError(
                    f"the runtime {shown(name)} is unknown; it must be one of "
                    f"{', '.join(EXPORTERS)}, or fastest"
                )
        if FASTEST in self.names and len(self.names) > 1:
            raise UsageError("fastest tries all that are installed; give it alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedForm:
    """A network in the form of one runtime, which computes what it should.

    Attributes:
        name: of the runtime.
        version: of the runtime.
        made_by: version of each package that decided the bytes.
        precision: fp32, fp16 or int8.
        computes: how that is stored and computed, in words.
        reproducible: whether converting twice gives the same bytes.
        confined: what the kernel held the converter to, "network" and "writes".
        files: contents by name.
        golden: [n, classes] logits of the golden images, in this precision.
        parity: agreement of the files in float32 with PyTorch.
        agreement: of these files with the float32 ONNX file; None in float32.
        arena_bytes: memory that the runtime takes for the network, measured on this machine; None
            where it asks the system for it.
    """

    name: str
    version: str
    made_by: Mapping[str, str]
    precision: str
    computes: str
    reproducible: bool
    confined: Mapping[str, bool]
    files: Mapping[str, bytes]
    golden: NDArray[np.float32]
    parity: ParityRecord
    agreement: Agreement | None
    arena_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedNetwork:
    """The compressed network in the form of one runtime, measured against the original.

    Attributes:
        form: its files, checked.
        original: the original's files by name, in float32.
        latency: of original and compressed network in turns, in this runtime.
    """

    form: CheckedForm
    original: Mapping[str, bytes]
    latency: LatencyReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtimes:
    """What became of every runtime that was asked for or tried.

    Attributes:
        kept: those whose files go into the bundle.
        rows: what the report says, one row for each runtime, ONNX Runtime first.
    """

    kept: tuple[ConvertedNetwork, ...] = ()
    rows: tuple[Mapping[str, JsonValue], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FormInputs:
    """What is converted, and how it is judged.

    Attributes:
        network: the network in PyTorch.
        model: its ONNX file in float32.
        lowered: the same in its final precision.
        pixels: [n, c, h, w] synthetic images in [0, 1].
        golden: how many of them, from the first on, are the golden images.
        parity: tolerance of parity.
        precision: threshold of a lowered precision.
    """

    network: Network
    model: bytes
    lowered: LoweredModel
    pixels: Float[Tensor, "n c h w"]
    golden: int
    parity: ParitySettings
    precision: PrecisionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInputs:
    """The compressed network of a run, and what it is measured against.

    Attributes:
        form: the network and how its form in a runtime is judged.
        original: the original's ONNX file.
        latency: length and conditions of the measurement.
        measured: latencies of both ONNX files in ONNX Runtime.
    """

    form: FormInputs
    original: bytes
    latency: LatencySettings
    measured: LatencyReport


def chosen_runtimes(choice: RuntimeChoice, target: Target) -> tuple[str, ...]:
    """The names that were asked for, or the target's own runtime."""
    return choice.names or (target.runtime,)


def require_runtimes(
    choice: RuntimeChoice, target: Target, precision: str, latency: LatencySettings
) -> None:
    """Refuse, before any work, runtimes that are not here or cannot do what was asked.

    Raises:
        ToolchainError: a runtime is not installed; the message says what brings it.
        UsageError: a runtime lacks the precision, or measures on the CPU alone.
    """
    names = chosen_runtimes(choice, target)
    if choice.names and TENSORRT in names and target.runtime != TENSORRT:
        raise UsageError(
            f"the runtime tensorrt was asked for {target.name}, and an engine is built on the "
            "device itself; choose a target with TensorRT, such as jetson"
        )
    asked = [name for name in names if name in CONVERTED]
    for name in asked:
        confined_exporter(name, HeldSettings(precision=precision)).require()
    if (asked or FASTEST in names) and latency.provider != "cpu":
        raise UsageError(
            f"runtimes are measured on the CPU, and the provider {latency.provider} was asked; "
            "leave one of the two out"
        )


def require_forms(choice: RuntimeChoice, precision: str) -> None:
    """Refuse, before any work, runtimes that `forms_for` could not convert for.

    Raises:
        ToolchainError: a runtime is not installed; the message says what brings it.
        UsageError: a runtime lacks the precision, or would have to be chosen by measuring.
    """
    for name in choice.names:
        if name in (FASTEST, TENSORRT):
            raise UsageError(
                f"the runtime {name} was asked of an export, which writes files and measures "
                f"nothing; name one or more of {', '.join(CONVERTED)}"
            )
        if name in CONVERTED:
            confined_exporter(name, HeldSettings(precision=precision)).require()


def forms_for(
    choice: RuntimeChoice, given: FormInputs, *, progress: Progress = silent
) -> tuple[CheckedForm, ...]:
    """Convert for each runtime that was named, and check what came out; nothing is measured.

    Raises:
        EdgecleanError: see `checked_form`.
    """
    names = [name for name in choice.names if name in CONVERTED]
    made = []
    for number, name in enumerate(names):
        progress(f"Converting for {name}", number, len(names))
        made.append(checked_form(name, given))
    if names:
        progress("Converting for runtimes", len(names), len(names))
    return tuple(made)


def convert_and_measure(
    choice: RuntimeChoice, target: Target, given: RuntimeInputs, *, progress: Progress = silent
) -> Runtimes:
    """Convert for each runtime, check what came out, and measure it.

    Args:
        choice: the runtimes.
        target: whose own runtime is taken where none was chosen.
        given: the networks.
        progress: told of every runtime.

    Returns:
        What goes into the bundle, and the report's rows.

    Raises:
        ParityError: a runtime that was asked for computes something else.
        InputRejectedError: it does not take the network.
        ToolchainError: it is not installed, or crashed.
    """
    names = chosen_runtimes(choice, target)
    trying = FASTEST in names
    asked = (
        _installed(given.form.precision.format) if trying else [n for n in names if n in CONVERTED]
    )
    made: list[ConvertedNetwork] = []
    failed: list[tuple[str, str]] = []
    for number, name in enumerate(asked):
        progress(f"Converting for {name}", number, len(asked))
        try:
            made.append(_converted(name, given))
        except EdgecleanError as error:
            if not trying:
                raise
            failed.append((name, str(error)))
    if asked:
        progress("Converting for runtimes", len(asked), len(asked))
    own = given.measured.compressed.p50_ms
    best = (
        min(made, key=lambda one: one.latency.compressed.p50_ms, default=None) if trying else None
    )
    if best is not None and best.latency.compressed.p50_ms >= own:
        best = None
    kept = tuple(made) if not trying else () if best is None else (best,)
    if not made and not failed:
        return Runtimes()
    rows = [_onnx_row(given)]
    rows += [_row(one, kept=one in kept) for one in made]
    rows += [_failed_row(name, why) for name, why in failed]
    return Runtimes(kept=kept, rows=tuple(rows))


def _installed(precision: str) -> list[str]:
    """The runtimes that can be tried here."""
    found = []
    for name in CONVERTED:
        exporter = confined_exporter(name, HeldSettings(precision=precision))
        if exporter.version() is not None and precision in exporter.precisions:
            found.append(name)
    return found


def checked_form(name: str, given: FormInputs) -> CheckedForm:
    """Convert a network for one runtime, and check what came out.

    Raises:
        ParityError: the runtime computes something else.
        InputRejectedError: it does not take the network.
        ToolchainError: it is not installed, or crashed.
    """
    plain = confined_exporter(name)
    exporter = confined_exporter(name, HeldSettings(precision=given.precision.format))
    in_float = plain.converted(given.model)
    golden = given.pixels[: given.golden]
    words = (f"the network in {exporter.title}", f"{exporter.title}, CPU, fp32")
    run = plain.load(in_float.files).run
    parity = compare_with_pytorch(given.network, golden, run, given.parity, names=words)
    made, agreement = in_float, None
    if given.precision.format != "fp32":
        made = _lowered(exporter, given)
        agreement = _agreement(exporter, made.files, given)
    images = normalize(golden.detach().cpu().float(), given.network.spec).numpy()
    return CheckedForm(
        name=name,
        version=exporter.version() or "",
        made_by=exporter.made_by(),
        precision=given.precision.format,
        computes=exporter.computes[given.precision.format],
        reproducible=exporter.reproducible,
        confined=dict(made.facts["confined"]),
        files=made.files,
        golden=exporter.load(made.files).run(images),
        parity=parity,
        agreement=agreement,
        arena_bytes=exporter.arena_bytes(made.files),
    )


def _lowered(exporter: ConfinedExporter, given: FormInputs) -> Parcel:
    """The files in a lowered precision.

    INT8 is in the ONNX file; what is half a float, a runtime makes of the float32 one itself, and
    some make INT8 as well, on images.
    """
    if given.precision.format != "int8":
        return exporter.converted(given.model)
    if not exporter.calibrates:
        return exporter.converted(given.lowered.model)
    pixels = normalize(given.pixels.detach().cpu().float(), given.network.spec)
    return exporter.converted(given.model, split_images(pixels, given.precision.images)[0])


def _converted(name: str, given: RuntimeInputs) -> ConvertedNetwork:
    """One runtime, from the float32 files to the measurement.

    Raises:
        EdgecleanError: of the kind of what did not hold.
    """
    original = confined_exporter(name).converted(given.original).files
    form = checked_form(name, given.form)
    held = HeldSettings(precision=form.precision, threads=given.latency.threads)
    timed = confined_exporter(name, held), original, form.files, given.latency
    return ConvertedNetwork(form=form, original=original, latency=measure_runtime_pair(*timed))


def _agreement(
    exporter: ConfinedExporter, files: Mapping[str, bytes], given: FormInputs
) -> Agreement:
    """How close the lowered files stay to the float32 ONNX file.

    Raises:
        ParityError: not as close as the settings ask.
    """
    spec, most = given.network.spec, given.precision.images
    _, judging = split_images(normalize(given.pixels.detach().cpu().float(), spec), most)
    expected = OnnxSession(given.model).predict(judging)
    found = compare_logits(expected, exporter.load(files).run(judging))
    asked = given.precision.threshold
    if not asked.holds(found):
        raise ParityError(
            f"the network in {exporter.title} in {exporter.settings.precision} does not compute "
            f"what it does in fp32: {found.top1_agreement:.1%} of {found.images} synthetic images "
            f"keep their class at {found.signal_to_noise_db:.0f} dB, and {asked.agreement:.1%} at "
            f"{asked.signal_to_noise_db:.0f} dB were asked; ask for less, or use a higher precision"
        )
    return found


def _size(files: Mapping[str, bytes]) -> int:
    return sum(map(len, files.values()))


def _row(one: ConvertedNetwork, *, kept: bool) -> dict[str, JsonValue]:
    form = one.form
    return {
        "name": form.name,
        "version": form.version,
        "made_by": dict(form.made_by),
        "precision": form.precision,
        "computes": form.computes,
        "reproducible": form.reproducible,
        "confined": dict(form.confined),
        "bytes": {"original": _size(one.original), "compressed": _size(form.files)},
        "arena_bytes": form.arena_bytes,
        "parity": form.parity.max_relative_difference,
        "tolerance": form.parity.tolerance,
        "agreement": None if form.agreement is None else asdict(form.agreement),
        "latency": _times(one.latency),
        "kept": kept,
        "problem": None,
    }


def _onnx_row(given: RuntimeInputs) -> dict[str, JsonValue]:
    """ONNX Runtime beside them: what model.onnx itself does."""
    form = given.form
    lowered = form.precision.format != "fp32"
    name, _, version = given.measured.runtime.partition(" ")
    return {
        "name": name,
        "version": version,
        "made_by": {},
        "precision": form.precision.format,
        "computes": form.lowered.how,
        "reproducible": True,
        "confined": None,
        "bytes": {"original": len(given.original), "compressed": len(form.lowered.model)},
        "arena_bytes": None,
        "parity": None,
        "tolerance": form.parity.tolerance,
        "agreement": asdict(form.lowered.agreement) if lowered else None,
        "latency": _times(given.measured),
        "kept": True,  # every bundle holds model.onnx
        "problem": None,
    }


def _failed_row(name: str, why: str) -> dict[str, JsonValue]:
    exporter = confined_exporter(name)
    empty: Sequence[str] = ("precision", "computes", "reproducible", "confined", "bytes", "parity")
    return {
        "name": name,
        "version": exporter.version() or "",
        "made_by": exporter.made_by(),
        **{key: None for key in (*empty, "arena_bytes", "tolerance", "agreement", "latency")},
        "kept": False,
        "problem": why,
    }


def _times(report: LatencyReport) -> dict[str, JsonValue]:
    """The latencies without every single run."""
    times = {
        name: {"p50_ms": sample.p50_ms, "p90_ms": sample.p90_ms, "runs": sample.runs}
        for name, sample in (("original", report.original), ("compressed", report.compressed))
    }
    return {
        **times,
        "speedup": report.speedup,
        "speedup_low": report.speedup_low,
        "speedup_high": report.speedup_high,
        "steady": report.steady,
        "threads": report.threads,
    }
