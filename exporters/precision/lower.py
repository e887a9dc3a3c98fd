"""The exported network in the precision that the device computes in, and how close it stays.

FP32 is the file as it is. FP16, BF16 and INT8 stand in the graph itself, so that a runtime without
precision flags (TensorRT 11, TensorRT-RTX) computes what was checked here. Layers that hurt stay in
float32; see `exporters.precision.sensitivity`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from edgeclean.devices.targets import Target, or_jetpack, require
from edgeclean.errors import ParityError, UsageError
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import JsonValue, ModelSpec
from edgeclean.progress import Progress, silent
from edgeclean.settings import Settings, setting
from exporters.onnx_exporter import ExportSettings, OnnxExporter
from exporters.precision.half import BF16_OPSET, layers_of, out_of_range, to_bf16, to_fp16
from exporters.precision.int8 import (
    INT8_OPSET,
    Calibration,
    Scales,
    quantised_layers,
    stored_in_int8,
    to_int8,
    without,
)
from exporters.precision.sensitivity import Agreement, Choice, Judge, Threshold, choose_kept

Precision = Literal["fp32", "fp16", "bf16", "int8"]
HOW = {
    "fp32": "as exported",
    "fp16": "ONNX Runtime's CPU provider computes FP16 layers in float32 between casts: what is "
    "measured is the rounding of weights and of what stands between layers",
    "bf16": "ONNX Runtime's CPU provider has no bfloat16 convolutions: measured with the bfloat16 "
    "weights in float32 arithmetic; the file itself is checked by onnx.checker alone",
    "int8": "convolutions in INT8 between quantise-dequantise pairs",
}
# How closely another machine must meet the stored logits: rounding falls differently elsewhere.
GOLDEN_TOLERANCE = {"fp16": 1e-2, "bf16": 1e-2, "int8": 1e-1}


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionSettings(Settings):
    """What the exported network computes in.

    Attributes:
        format: fp32, fp16, bf16 or int8.
        calibration: how INT8 ranges are taken from the synthetic images.
        scales: of weights in INT8: one for each output channel, or one for each whole tensor,
            which some converters ask for.
        images: most synthetic images to calibrate on, and as many others to judge by.
        agreement: least fraction of synthetic images that must keep their class.
        int8_signal_db: least signal-to-noise ratio of the logits in INT8, in decibels.
        fp16_signal_db: the same in FP16.
        bf16_signal_db: the same in BF16, which has three bits less than FP16.
    """

    format: Precision = "fp32"
    calibration: Calibration = "percentile"
    scales: Scales = "channel"
    images: int = setting(128, at_least=1, at_most=10**5)
    agreement: float = setting(0.98, at_least=0, at_most=1)
    int8_signal_db: float = setting(20.0, at_least=0, at_most=150)
    fp16_signal_db: float = setting(35.0, at_least=0, at_most=150)
    bf16_signal_db: float = setting(25.0, at_least=0, at_most=150)

    @property
    def threshold(self) -> Threshold:
        """What the file must keep."""
        signal = {
            "int8": self.int8_signal_db,
            "fp16": self.fp16_signal_db,
            "bf16": self.bf16_signal_db,
        }
        return Threshold(agreement=self.agreement, signal_to_noise_db=signal.get(self.format, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweredModel:
    """A file in its final precision.

    Attributes:
        model: the ONNX file.
        format: what it computes in, but for ``kept``.
        layers: how many layers could be lowered.
        kept: those that stayed in float32.
        sensitivity_db: see `exporters.precision.sensitivity.Choice`.
        agreement: with the float32 file, on synthetic images that it was not calibrated on (where
            there are enough).
        calibration: of INT8; None elsewhere.
        how: what the measurement covers.
        runtime: what it was measured with.
    """

    model: bytes
    format: Precision
    layers: int
    kept: tuple[str, ...]
    sensitivity_db: dict[str, float]
    agreement: Agreement
    calibration: str | None
    how: str
    runtime: str

    def summary(self) -> dict[str, JsonValue]:
        """All but the file, for the report."""
        agreement = asdict(self.agreement)
        return {
            "format": self.format,
            "layers": self.layers,
            "kept": list(self.kept),
            "sensitivity_db": dict(self.sensitivity_db),
            "agreement": agreement,
            "calibration": self.calibration,
            "how": self.how,
            "runtime": self.runtime,
        }


def check_precision(settings: PrecisionSettings, export: ExportSettings, target: Target) -> None:
    """Refuse, before any work, a precision that the target or the opset does not have.

    Raises:
        UsageError: with the reason and the nearest that can be had.
    """
    require(target, precision=settings.format)
    if settings.format == "bf16" and target.opset_max < BF16_OPSET:
        elsewhere = or_jetpack(target, BF16_OPSET)
        raise UsageError(
            f"bf16 needs opset {BF16_OPSET}, from which on ONNX has convolutions in it, and "
            f"{target.name} reads up to opset {target.opset_max}; use fp16{elsewhere}"
        )
    if settings.format == "int8" and target.scales == "tensor" != settings.scales:
        raise UsageError(
            f"{target.name} takes INT8 with one scale for each tensor, and one for each "
            f"{settings.scales} was asked; leave precision.scales out"
        )
    if settings.format == "int8" and export.opset < INT8_OPSET:
        raise UsageError(
            f"int8 needs opset {INT8_OPSET} or above, and {export.opset} was asked; use "
            f"{INT8_OPSET}, or fp16"
        )


def lower_precision(
    model: bytes,
    spec: ModelSpec,
    pixels: Float[Tensor, "n c h w"],
    settings: PrecisionSettings | None = None,
    *,
    progress: Progress = silent,
) -> LoweredModel:
    """Write a float32 ONNX file in another precision, as closely as the settings ask.

    Args:
        model: the float32 file.
        spec: how its input is normalised.
        pixels: [n, c, h, w] synthetic images in [0, 1]; labels are not read.
        settings: the precision and how close it must stay.
        progress: told while layers are measured.

    Returns:
        The file with its agreement with ``model``; fp32 gives ``model`` itself.

    Raises:
        UsageError: no images, or the file's opset cannot hold the precision.
        ParityError: the file is not close enough, whatever is kept in float32.
        InputRejectedError: the network cannot be converted.
    """
    settings = settings or PrecisionSettings()
    calibrating, judging = split_images(
        normalize(pixels.detach().cpu().float(), spec), settings.images
    )
    judge = Judge(model, judging)
    if settings.format == "fp32":
        choice = Choice(model=model, kept=(), sensitivity_db={}, agreement=judge(model))
        layers: tuple[str, ...] = ()
    elif settings.format == "int8":
        whole = to_int8(model, calibrating, settings.calibration, settings.scales)
        layers = quantised_layers(whole)
        choice = choose_kept(
            lambda kept: _int8_file(whole, kept, settings.scales),
            layers,
            judge,
            settings.threshold,
            progress=progress,
        )
    else:
        write = to_fp16 if settings.format == "fp16" else to_bf16
        layers = layers_of(model)
        choice = choose_kept(
            lambda kept: write(model, kept),
            layers,
            judge,
            settings.threshold,
            always_kept=out_of_range(model, calibrating) if settings.format == "fp16" else (),
            progress=progress,
        )
    return _lowered(choice, settings, layers)


def _int8_file(whole: bytes, kept: frozenset[str], scales: Scales) -> bytes:
    """The INT8 file with some layers in float32, its weights as the reader of such scales wants."""
    file = without(whole, kept)
    return stored_in_int8(file) if scales == "tensor" else file


def split_images(
    images: Float[Tensor, "n c h w"], most: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images to calibrate on and others to judge by; the same ones where there is only one.

    Args:
        images: [n, c, h, w] normalised.
        most: of each.

    Raises:
        UsageError: there are none.
    """
    if len(images) == 0:
        raise UsageError("no images were given to choose a precision by; at least one is needed")
    rows: NDArray[np.float32] = images.numpy()
    if len(rows) == 1:
        return rows, rows
    return rows[::2][:most], rows[1::2][:most]


def _lowered(choice: Choice, settings: PrecisionSettings, layers: tuple[str, ...]) -> LoweredModel:
    found, asked = choice.agreement, settings.threshold
    if not asked.holds(found):
        raise ParityError(
            f"the network in {settings.format} does not compute what it does in fp32 on synthetic "
            f"images, whatever is kept in fp32: {found.top1_agreement:.1%} keep their class at "
            f"{found.signal_to_noise_db:.0f} dB, and {asked.agreement:.1%} at "
            f"{asked.signal_to_noise_db:.0f} dB were asked; ask for less, or use a higher precision"
        )
    onnx_runtime = OnnxExporter()
    return LoweredModel(
        model=choice.model,
        format=settings.format,
        layers=len(layers),
        kept=choice.kept,
        sensitivity_db=choice.sensitivity_db,
        agreement=choice.agreement,
        calibration=settings.calibration if settings.format == "int8" else None,
        how=HOW[settings.format],
        runtime=f"{onnx_runtime.name} {onnx_runtime.version()}, CPU",
    )
