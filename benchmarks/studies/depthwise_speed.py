"""Time one step of recovery by its precision: ``python -m benchmarks.studies.depthwise_speed``.

Forward and backward pass of a batch, BatchNorms folded, on one thread: in float32, in bfloat16, and
as `edgeclean.networks.autocast.mixed_precision` does it, with the gradients of depthwise layers in
float32. Weights are random, for time alone is measured: processor time, the three in turns, the
fastest of some rounds, so that other programs matter little.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import AbstractContextManager

import torch
from torch import nn

from benchmarks.environment import environment
from benchmarks.networks.efficientnet_lite import efficientnet_lite0
from benchmarks.networks.small_mobilenet import half_mobilenet_v2
from benchmarks.studies.published import RESULTS
from benchmarks.suite.cells import Cell, write_whole
from benchmarks.suite.suites import CIFAR10, image_spec
from edgeclean.load.architectures import build_architecture
from edgeclean.networks.autocast import channels_last, mixed_precision
from edgeclean.networks.folding import learning_folded

CPU = torch.device("cpu")
ROUNDS = 5
HOW = ("float32", "bfloat16", "ours")
# By network: the side of an image, and images a batch.
NETWORKS = {"efficientnet-lite0": (224, 8), "half MobileNetV2": (32, 64), "resnet20": (32, 64)}


def main() -> None:
    """Measure every network, and write the file and its table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    rows = {name: measure(name) for name in NETWORKS}
    whole = {
        "command": "python -m benchmarks.studies.depthwise_speed",
        "seed": 0,
        "rounds": ROUNDS,
        "ms_an_image": rows,
        "environment": environment(),
    }
    write_whole(RESULTS / "depthwise-speed.json", json.dumps(whole, indent=1))
    write_whole(RESULTS / "depthwise-speed.md", table(rows))


def measure(name: str) -> Cell:
    """Return the milliseconds that an image takes of one step, by the precision."""
    side, count = NETWORKS[name]
    torch.manual_seed(0)
    module = channels_last(_built(name).eval())
    images = torch.rand(count, 3, side, side).to(memory_format=torch.channels_last)
    fastest = dict.fromkeys(HOW, float("inf"))
    with learning_folded(module, images[:4]):
        for _ in range(ROUNDS):
            for how in HOW:
                start = time.process_time()
                with _context(how):
                    outputs = module(images)
                outputs.float().square().mean().backward()
                spent = 1000 * (time.process_time() - start) / count
                fastest[how] = min(fastest[how], spent)
    return {"side": side, "images": count, **{how: round(ms, 2) for how, ms in fastest.items()}}


def table(rows: dict[str, Cell]) -> str:
    """Return a row for each network, milliseconds an image."""
    head = ["network", "image", "float32", "bfloat16", "bfloat16, depthwise gradients in float32"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        times = " | ".join(f"{row[how]:.2f}" for how in HOW)
        lines.append(f"| {name} | {row['side']}x{row['side']} | {times} |")
    return "\n".join(lines)


def _context(how: str) -> AbstractContextManager[None]:
    if how == "ours":
        return mixed_precision(CPU)
    return torch.autocast("cpu", torch.bfloat16, enabled=how == "bfloat16")


def _built(name: str) -> nn.Module:
    if name == "efficientnet-lite0":
        return efficientnet_lite0(1000)
    if name == "half MobileNetV2":
        return half_mobilenet_v2(10, (3, 32, 32))
    return build_architecture(name, image_spec(name, **CIFAR10), ())


if __name__ == "__main__":
    main()
