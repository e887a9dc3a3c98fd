"""Measure the gain of folding BatchNorm: ``python -m benchmarks.studies.folding``.

The network of ``make demo``, its BatchNorms as they are and folded, in turns: forward with the
gradient of the pixels, as in the searches (`inference_copy`), and with the gradient of the weights,
as in unlearning (`folding_norms`). Two threads; medians of pairs made in one run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.studies.published import RESULTS
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.load.model_file import read_model_file
from edgeclean.networks.autocast import device_of, mixed_precision
from edgeclean.networks.folding import folding_norms, inference_copy
from edgeclean.networks.pixels import pixel_copy

DEMO = Path(__file__).parents[1] / "zoo" / "demo"
THREADS, IMAGES, WARM_UP, PAIRS = 2, 128, 3, 25


def main() -> None:
    """Measure both, and write ``results/folding.json``."""
    argparse.ArgumentParser(description="Measure the gain of folding BatchNorm.").parse_args()
    torch.set_num_threads(THREADS)
    network = load_checkpoint(
        DEMO.with_suffix(".safetensors"), read_model_file(DEMO.with_suffix(".toml"))
    )
    pixels = torch.rand(
        IMAGES, *network.spec.input_shape, generator=torch.Generator().manual_seed(0)
    )
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    asked, learner = pixel_copy(network).requires_grad_(False), pixel_copy(network)
    quick = inference_copy(asked, pixels)
    result = {
        "command": "python -m benchmarks.studies.folding",
        "images": IMAGES,
        "seed": 0,
        "pixels' gradient": _pairs(
            lambda: _milliseconds(asked, pixels), lambda: _milliseconds(quick, pixels)
        ),
        "weights' gradient": _pairs(
            lambda: _milliseconds(learner, pixels), lambda: _folded_milliseconds(learner, pixels)
        ),
        "environment": environment(),
    }
    (RESULTS / "folding.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


def _milliseconds(function: nn.Module, pixels: Tensor) -> float:
    """Time one forward and backward pass, to the weights where they take gradients."""
    learning = any(parameter.requires_grad for parameter in function.parameters())
    shown = pixels.clone().requires_grad_(not learning)
    function.zero_grad()
    start = time.perf_counter()
    with mixed_precision(device_of(function)):
        outputs = function(shown)
    outputs.float().square().mean().backward()
    return 1e3 * (time.perf_counter() - start)


def _folded_milliseconds(learner: nn.Module, pixels: Tensor) -> float:
    # What can be folded is found once for hundreds of steps, and so is not timed.
    with folding_norms(learner, pixels):
        return _milliseconds(learner, pixels)


def _pairs(plain: Callable[[], float], folded: Callable[[], float]) -> dict[str, object]:
    """Return milliseconds of both, in turns, and the ratios within the pairs."""
    pairs = [(plain(), folded()) for _ in range(WARM_UP + PAIRS)][WARM_UP:]
    columns = {
        "plain, ms": [one for one, _ in pairs],
        "folded, ms": [other for _, other in pairs],
        "plain over folded": [one / other for one, other in pairs],
    }
    return {
        name: {"median": round(statistics.median(values), 3), "quartiles": _quartiles(values)}
        for name, values in columns.items()
    }


def _quartiles(values: list[float]) -> list[float]:
    first, _, third = statistics.quantiles(values, n=4)
    return [round(first, 3), round(third, 3)]


if __name__ == "__main__":
    main()
