"""Measure the accuracy that compression costs, on the user's labelled images.

Both networks run as ONNX files: the file that ships is judged, not a network like it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray

from edgeclean.images.labelled import LabelledImages
from edgeclean.networks.batching import images_shown
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import ModelSpec
from exporters.session import OnnxSession

BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The accuracy of two networks on the same images.

    Attributes:
        images: number of images.
        images_sha256: SHA-256 of their pixels and labels as read, whatever file they came from.
        original_accuracy: share of the images that the original classifies correctly, in [0, 1].
        compressed_accuracy: the same share for the compressed network.
        drop_points: original minus compressed, in percentage points; below zero for a gain.
        drop_standard_error_points: standard error of ``drop_points`` over the choice of images,
            from paired answers (McNemar 1947).
    """

    images: int
    images_sha256: str
    original_accuracy: float
    compressed_accuracy: float
    drop_points: float
    drop_standard_error_points: float


def evaluate(
    original: bytes, compressed: bytes, labelled: LabelledImages, spec: ModelSpec
) -> Evaluation:
    """Run both ONNX files on every image and compare their answers with the labels.

    Args:
        original: the ONNX file of the original network.
        compressed: the ONNX file that ships.
        labelled: the images, pixels in [0, 255] as uint8, with their labels.
        spec: the original's specification, which says how pixels are normalised.
    """
    correct = [_correct(model, labelled, spec) for model in (original, compressed)]
    count = len(labelled)
    lost = int((correct[0] & ~correct[1]).sum())
    gained = int((~correct[0] & correct[1]).sum())
    variance = (lost + gained) / count - ((lost - gained) / count) ** 2
    digest = hashlib.sha256(labelled.pixels.tobytes() + labelled.labels.tobytes())
    return Evaluation(
        images=count,
        images_sha256=digest.hexdigest(),
        original_accuracy=float(correct[0].mean()),
        compressed_accuracy=float(correct[1].mean()),
        drop_points=100 * (lost - gained) / count,
        drop_standard_error_points=100 * math.sqrt(max(0.0, variance) / count),
    )


def _correct(model: bytes, labelled: LabelledImages, spec: ModelSpec) -> NDArray[np.bool_]:
    session = OnnxSession(model)
    predicted: list[Int[np.ndarray, " n"]] = []
    at_once = images_shown(spec.input_shape, BATCH)
    for start in range(0, len(labelled), at_once):
        pixels = torch.from_numpy(labelled.pixels[start : start + at_once]).float() / 255
        images = np.ascontiguousarray(normalize(pixels, spec).numpy())
        predicted.append(session.predict(images).argmax(axis=1))
    correct: NDArray[np.bool_] = np.concatenate(predicted) == labelled.labels
    return correct
