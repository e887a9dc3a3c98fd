"""Measure the memory of one step of every stage: ``python -m benchmarks.studies.memory``.

The network is a ResNet-50 for 224x224 images with random weights: a step's memory depends on the
shapes alone.
Each stage runs in a process of its own, whose peak is the operating system's; ``before`` is that of
the same process with the network and the images alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.environment import environment, peak_mib
from benchmarks.studies.published import RESULTS
from benchmarks.suite.cells import Cell, write_whole
from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.purify import PurifySettings, purify
from edgeclean.backdoor.scan import ScanSettings, scan
from edgeclean.backdoor.unlearn import UnlearnSettings
from edgeclean.compression.finetune import FinetuneSettings, finetune
from edgeclean.images.synthesize import SynthesizeSettings, synthesize
from edgeclean.load.architectures import build_architecture
from edgeclean.networks.batching import KEPT_BYTES, images_at_once
from edgeclean.networks.pixels import pixel_copy
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages
from edgeclean.processes import keep_freed_memory

SPEC = ModelSpec(
    architecture="resnet50",
    input_shape=(3, 224, 224),
    classes=10,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
)
IMAGES = 256  # as many as synthesis makes together where they fit
STAGES = ("synthesis", "masked-patch search", "unlearning", "recovery")
NOTHING_FOUND = ScanReport(verdict="not found", suspects=(), searches=(), images=IMAGES)


def main() -> None:
    """Measure a row for each stage, and write the file."""
    argparse.ArgumentParser(
        description="Measure the memory of one step of every stage."
    ).parse_args()
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawned, max_tasks_per_child=1) as pool:
        rows = dict(zip(STAGES, pool.map(measure, STAGES), strict=True))
    whole = {
        "command": "python -m benchmarks.studies.memory",
        "network": f"{SPEC.architecture}, {SPEC.classes} classes, random weights",
        "input_shape": list(SPEC.input_shape),
        "seed": 0,
        "kept_mib_at_most": KEPT_BYTES // 2**20,
        "stages": rows,
        "environment": environment(),
    }
    write_whole(RESULTS / "memory.json", json.dumps(whole, indent=1))
    print(json.dumps(rows, indent=1))


def measure(stage: str) -> Cell:
    """Measure one step: seconds, and the peak in MiB before and after it."""
    keep_freed_memory()  # as the command does
    torch.manual_seed(0)
    module = build_architecture(SPEC.architecture, SPEC, ()).eval()
    network = LoadedNetwork(module=module, spec=SPEC, source_sha256="0" * 64, history=())
    pixels, labels = torch.rand(IMAGES, *SPEC.input_shape), torch.arange(IMAGES) % SPEC.classes
    images = SyntheticImages(pixels=pixels, labels=labels, origin="noise")
    fitting = images_at_once(SPEC.input_shape, pixel_copy(network))
    before, start = peak_mib(), time.perf_counter()
    _step(stage, network, images)
    seconds = round(time.perf_counter() - start, 1)
    peak = peak_mib()
    return {"before_mib": before, "peak_mib": peak, "seconds": seconds, "images_at_once": fitting}


def _step(stage: str, network: LoadedNetwork, images: SyntheticImages) -> None:
    if stage == "synthesis":
        synthesize(network, SynthesizeSettings(count=IMAGES, steps=1), seed=0)
    elif stage == "masked-patch search":
        asked = ScanSettings(searches=("masked patch",), steps=1, restarts=1)
        scan(network, images, asked, seed=0)
    elif stage == "unlearning":
        gentle = PurifySettings(unlearn=UnlearnSettings(steps=1))
        purify(network, images, NOTHING_FOUND, gentle, seed=0)
    else:
        finetune(network, network, images, FinetuneSettings(steps=1), seed=0)


if __name__ == "__main__":
    main()
