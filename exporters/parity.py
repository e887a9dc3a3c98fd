"""Whether an exported network computes what the PyTorch one does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from edgeclean.errors import ParityError, UsageError
from edgeclean.networks.autocast import exact_float32
from edgeclean.networks.layers import evaluating
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import Network
from edgeclean.settings import Settings, setting
from exporters.onnx_exporter import OnnxExporter
from exporters.session import OnnxSession

PYTORCH_BATCH = 64
ROUNDING = 1e-6  # of numbers around one, which logits that cancel out are the difference of


@dataclass(frozen=True, slots=True, kw_only=True)
class ParitySettings(Settings):
    """How close the two must be.

    Attributes:
        tolerance: the largest difference allowed, relative to max(1, largest logit of the image).
        threads: of ONNX Runtime.
    """

    tolerance: float = setting(1e-4, above=0, below=1)
    threads: int = setting(1, at_least=1, at_most=1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRecord:
    """How close the two were.

    Attributes:
        images: how many were compared.
        max_abs_difference: between two logits, over all images and classes.
        max_relative_difference: the same over max(1, largest absolute logit of the image); this
            is what the tolerance bounds.
        max_abs_logit: the largest absolute logit of the PyTorch network.
        top1_agreement: fraction of the images for which both name the same class.
        runtime: what ran the exported network.
    """

    images: int
    max_abs_difference: float
    max_relative_difference: float
    max_abs_logit: float
    top1_agreement: float
    tolerance: float
    runtime: str


def check_parity(
    network: Network,
    model: bytes,
    pixels: Float[Tensor, "n c h w"],
    settings: ParitySettings | None = None,
) -> ParityRecord:
    """Compare the ONNX file with the PyTorch network on images, through ONNX Runtime on the CPU.

    Args:
        network: the PyTorch network that was exported.
        model: the ONNX file.
        pixels: [n, c, h, w] in [0, 1]; they are normalised here.
        settings: the tolerance.

    Returns:
        The differences; ``max_relative_difference`` is at most the tolerance.

    Raises:
        ParityError: a difference above the tolerance, also as a share of the largest logit of all
            images where that is below one; a logit that is not finite, or outputs of different
            shapes.
        InputRejectedError: ONNX Runtime cannot load the file.
        UsageError: no images, or the file takes images of another shape.
    """
    settings = settings or ParitySettings()
    session = OnnxSession(model, threads=settings.threads)
    if len(pixels) == 0 or tuple(pixels.shape[1:]) != session.input_shape:
        raise UsageError(
            f"{len(pixels)} images {tuple(pixels.shape[1:])} were given to compare; at least one "
            f"image {session.input_shape} is needed"
        )
    runtime = f"onnxruntime {OnnxExporter().version()}, CPU"
    return compare_with_pytorch(
        network, pixels, session.predict, settings, names=("the ONNX network", runtime)
    )


def compare_with_pytorch(
    network: Network,
    pixels: Float[Tensor, "n c h w"],
    predict: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    settings: ParitySettings,
    *,
    names: tuple[str, str],
) -> ParityRecord:
    """Compare what some runtime computes with the PyTorch network on images.

    Args:
        network: the PyTorch network.
        pixels: [n, c, h, w] in [0, 1]; they are normalised here.
        predict: gives the logits [n, classes] of normalised images [n, c, h, w].
        settings: the tolerance.
        names: of what is compared, for messages; and of what ran it, for the record.

    Returns:
        As `check_parity`.

    Raises:
        ParityError: as `check_parity`.
    """
    images = normalize(pixels.detach().cpu().float(), network.spec)
    expected = _pytorch_logits(network, images)
    got = predict(images.numpy())
    if got.shape != expected.shape:
        raise ParityError(
            f"{names[0]}'s logits have the shape {got.shape}; PyTorch's have {expected.shape}"
        )
    record = _compare(expected, got, settings.tolerance, names[1])
    if not record.max_relative_difference <= settings.tolerance:  # also true for NaN
        raise ParityError(
            f"{names[0]} differs from PyTorch by {record.max_relative_difference:.3g} of "
            f"max(1, largest logit) on {record.images} images; at most {settings.tolerance:.3g} is "
            "allowed: raise the tolerance only if this difference is harmless for you"
        )
    _check_small(record, names[0])
    return record


def _check_small(record: ParityRecord, name: str) -> None:
    """Check answers that are all below one by their own size: probabilities of many classes are."""
    largest = record.max_abs_logit
    near = max(record.tolerance * largest, ROUNDING)
    if largest < 1 and record.max_abs_difference > near:
        raise ParityError(
            f"{name} differs from PyTorch by {record.max_abs_difference:.3g}, and the largest "
            f"logit of {record.images} images is {largest:.3g}; at most {record.tolerance:.3g} of "
            "that is allowed"
        )


def _pytorch_logits(network: Network, images: Float[Tensor, "n c h w"]) -> NDArray[np.float32]:
    """Logits [n, classes] in evaluation mode; every submodule's own mode is restored."""
    reference = next(network.module.parameters())
    with evaluating(network.module), torch.no_grad(), exact_float32():
        logits = [
            network.module(part.to(reference)).float().cpu() for part in images.split(PYTORCH_BATCH)
        ]
    stacked: NDArray[np.float32] = torch.cat(logits).numpy()
    return stacked


def _compare(
    expected: NDArray[np.float32], got: NDArray[np.float32], tolerance: float, runtime: str
) -> ParityRecord:
    difference = np.abs(got.astype(np.float64) - expected)
    largest_logit = np.abs(expected).max(axis=1, keepdims=True)
    return ParityRecord(
        images=len(expected),
        max_abs_difference=float(difference.max()),
        max_relative_difference=float((difference / np.maximum(1.0, largest_logit)).max()),
        max_abs_logit=float(largest_logit.max()),
        top1_agreement=float((expected.argmax(axis=1) == got.argmax(axis=1)).mean()),
        tolerance=tolerance,
        runtime=runtime,
    )
