"""How much accuracy a compressed network loses to the original, on the user's labelled images.

Both are run as ONNX files: what is judged is the file that ships, not a network like it.
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
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import ModelSpec
from exporters.session import OnnxSession

BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The accuracy of two networks on the same images.

    Attributes:
        images: how many.
        images_sha256: of their pixels and labels as they were read, whatever file they came from.
        original_accuracy: share of images whose class the original names, in [0, 1].
        compressed_accuracy: likewise.
        drop_points: original minus compressed, in percentage points; below zero for a gain.
        drop_standard_error_points: how far ``drop_points`` may be off by the choice of images;
            of paired answers (McNemar 1947).
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
    """Run both ONNX files on every image.

    Args:
        original: the ONNX file of the original network.
        compressed: the one that ships.
        labelled: pixels in [0, 255] as uint8.
        spec: how pixels are normalised.
    """
    right = [_right(model, labelled, spec) for model in (original, compressed)]
    count = len(labelled)
    lost = int((right[0] & ~right[1]).sum())
    gained = int((~right[0] & right[1]).sum())
    variance = (lost + gained) / count - ((lost - gained) / count) ** 2
    digest = hashlib.sha256(labelled.pixels.tobytes() + labelled.labels.tobytes())
    return Evaluation(
        images=count,
        images_sha256=digest.hexdigest(),
        original_accuracy=float(right[0].mean()),
        compressed_accuracy=float(right[1].mean()),
        drop_points=100 * (lost - gained) / count,
        drop_standard_error_points=100 * math.sqrt(max(0.0, variance) / count),
    )


def _right(model: bytes, labelled: LabelledImages, spec: ModelSpec) -> NDArray[np.bool_]:
    session = OnnxSession(model)
    named: list[Int[np.ndarray, " n"]] = []
    for start in range(0, len(labelled), BATCH):
        pixels = torch.from_numpy(labelled.pixels[start : start + BATCH]).float() / 255
        images = np.ascontiguousarray(normalize(pixels, spec).numpy())
        named.append(session.predict(images).argmax(axis=1))
    right: NDArray[np.bool_] = np.concatenate(named) == labelled.labels
    return right
