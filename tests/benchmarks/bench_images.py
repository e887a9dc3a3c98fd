"""Small labelled images for the benchmarks' tests; needs nothing from outside."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.data.images import LabelledImages
from edgeclean.networks.state import ModelSpec, Network


def noise_images(count: int, *, classes: int = 4, side: int = 8, seed: int = 0) -> LabelledImages:
    """Uniform noise; every class equally often."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)
    return LabelledImages(
        pixels=pixels,
        labels=torch.arange(count) % classes,
        classes=tuple(f"class {label}" for label in range(classes)),
    )


def shade_images(count: int, *, classes: int = 4, side: int = 8, seed: int = 0) -> LabelledImages:
    """Noise around a brightness that tells the class: a tiny network learns it in seconds."""
    noise = noise_images(count, classes=classes, side=side, seed=seed)
    shade = noise.labels.float()[:, None, None, None] * (200 / classes) + 20
    pixels = (shade + 0.15 * noise.pixels.float()).to(torch.uint8)
    return LabelledImages(pixels=pixels, labels=noise.labels, classes=noise.classes)


def tiny_network(classes: int = 4, seed: int = 0) -> Network:
    """conv-BN-ReLU, pooled, conv-BN-ReLU, averaged, linear: normalised images to logits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, classes),
        )
    spec = ModelSpec(
        architecture="test",
        input_shape=(3, 8, 8),
        classes=classes,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    return Network(module=module.eval(), spec=spec, source_sha256="0" * 64)


class Spy:
    """A network that keeps what it was asked."""

    def __init__(self, classes: int) -> None:
        self.asked = []
        self.scale = torch.ones(classes, requires_grad=True)

    def __call__(self, pixels):
        self.asked.append(pixels.detach().clone())
        return pixels.mean((1, 2, 3))[:, None] * self.scale


def write_pack(path: Path, images: LabelledImages) -> None:
    encoded = [
        encode(picture.permute(1, 2, 0).numpy(), "WEBP", lossless=True) for picture in images.pixels
    ]
    np.savez(
        path,
        data=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        offsets=np.cumsum([0, *map(len, encoded)]).astype(np.int64),
        labels=images.labels.numpy().astype(np.uint8),
        classes=np.array(images.classes),
    )


def encode(picture: np.ndarray, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, form, **options)
    return stream.getvalue()
