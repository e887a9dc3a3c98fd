"""Time a network on a batch of images, on its own device (Clean & Compact's "inference time")."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from benchmarks.data.images import LabelledImages

BATCH = 100
WARM_UP = 5


def inference_ms(network: nn.Module, images: LabelledImages, *, runs: int) -> float:
    """Return the median milliseconds for the first 100 images, after some runs of warm-up."""
    device = next(network.parameters()).device
    pixels = images.first(BATCH).floats().to(device)
    milliseconds = []
    with torch.inference_mode():
        for _ in range(WARM_UP + runs):
            started = time.perf_counter_ns()
            network(pixels)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            milliseconds.append((time.perf_counter_ns() - started) / 1e6)
    return round(statistics.median(milliseconds[WARM_UP:]), 3)
