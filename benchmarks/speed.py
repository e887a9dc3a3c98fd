"""Time a network on a batch of images, on its own device (Clean & Compact's "inference time").

It takes turns with the undefended network, so that whatever else the machine does, it does to both;
on one thread of a processor the time of other programs is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.data.images import LabelledImages
from edgeclean.measure.block_backends import milliseconds
from edgeclean.measure.latency import speedup_interval
from edgeclean.networks.autocast import device_of

BATCH = 100
WARM_UP = 5


def inference_in_turns(
    undefended: nn.Module, network: nn.Module, images: LabelledImages, *, runs: int
) -> dict[str, object]:
    """Return both medians in milliseconds for the first 100 images, and the speed-up of them.

    The interval is of 95 %; some runs of warm-up come first.
    """
    device = device_of(network)
    pixels = images.first(BATCH).floats().to(device)
    latencies = np.empty((WARM_UP + runs, 2))
    pair: Sequence[nn.Module] = (undefended.to(device), network)
    with torch.inference_mode():
        for row in range(len(latencies)):
            for column in (0, 1) if row % 2 == 0 else (1, 0):
                latencies[row, column] = _milliseconds(pair[column], pixels)
    before, after = np.median(latencies[WARM_UP:], axis=0)
    low, high = speedup_interval(latencies[WARM_UP:], np.random.default_rng(0))
    return {
        "ms_batch_100": round(float(after), 3),
        "ms_batch_100_undefended": round(float(before), 3),
        "speedup": round(float(before / after), 4),
        "speedup_interval": [round(low, 4), round(high, 4)],
    }


def _milliseconds(network: nn.Module, pixels: torch.Tensor) -> float:
    if pixels.device.type != "cuda":
        return milliseconds(lambda: network(pixels), threads=torch.get_num_threads())
    torch.cuda.synchronize(pixels.device)
    started = time.perf_counter_ns()
    network(pixels)
    torch.cuda.synchronize(pixels.device)
    return (time.perf_counter_ns() - started) / 1e6
