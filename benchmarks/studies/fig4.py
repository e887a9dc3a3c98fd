"""Repeat Clean & Compact's Fig. 4: the classes of adversarial versions of synthetic images.

``python -m benchmarks.studies.fig4`` makes images of a backdoored network (the demo's), moves them
by an *untargeted* attack on that network, and counts the classes that it gives them;
``results/fig4-demo.svg`` is drawn from ``results/fig4-demo.json`` alone (``--draw``). The paper
says that most fall into the attacker's class.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.environment import environment
from benchmarks.networks.train_demo import demo_network
from benchmarks.rendering.drawing import ALARM, SERIES, new_figure, save, styled
from benchmarks.suite.cells import write_whole
from edgeclean.images.synthesize import SynthesizeSettings, synthesize
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import JsonValue, Network

RESULTS = Path(__file__).parents[1] / "results"
EPSILONS = (0, 2, 4, 8)  # of 255
STEPS = 10
SEED = 0


def measure(network: Network, target: int, settings: SynthesizeSettings) -> dict[str, JsonValue]:
    """Count the classes that the attacked images get; those of the attacker's class are left out.

    An image's class is the one that the network itself gives it before the attack.
    """
    function = copy.deepcopy(pixel_network(network)).eval().requires_grad_(False)
    pixels = synthesize(network, settings, seed=SEED).pixels
    classes = predicted(function, pixels)
    victims, own = pixels[classes != target], classes[classes != target]
    generator = torch.Generator().manual_seed(SEED)
    counts = {}
    for epsilon in EPSILONS:
        moved = untargeted(function, victims, own, epsilon / 255, generator)
        given = predicted(function, moved)
        counts[str(epsilon)] = given.bincount(minlength=network.spec.classes).tolist()
    return {"target": target, "images": len(victims), "counts_by_epsilon": counts}


def untargeted(
    function: nn.Module,
    pixels: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    epsilon: float,
    generator: torch.Generator,
) -> Float[Tensor, "n c h w"]:
    """Attack by projected sign ascent away from the labels, from a random start.

    Source: Madry et al. (2018).
    """
    noise = epsilon * (2 * torch.rand(pixels.shape, generator=generator) - 1)
    moved = (pixels + noise).clamp(0, 1)
    for _ in range(STEPS if epsilon else 0):
        moved = moved.detach().requires_grad_()
        loss = functional.cross_entropy(function(moved), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        stepped = moved.detach() + 2.5 * epsilon / STEPS * gradient.sign()
        moved = torch.maximum(torch.minimum(stepped, pixels + epsilon), pixels - epsilon).clamp(
            0, 1
        )
    return moved.detach()


def predicted(function: nn.Module, pixels: Float[Tensor, "n c h w"]) -> Int[Tensor, " n"]:
    """Predict the class of each image."""
    with torch.no_grad():
        return torch.cat([function(batch).argmax(1) for batch in pixels.split(250)])


@styled
def draw(record: dict[str, JsonValue]) -> Figure:
    """Draw a histogram of classes for each strength; the attacker's class stands out."""
    counts = record["counts_by_epsilon"]
    figure = new_figure(width=2.3 * len(counts), height=2.6)
    grid = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (epsilon, of_classes) in zip(grid, counts.items(), strict=True):
        shares = [100 * count / record["images"] for count in of_classes]
        colours = [ALARM if c == record["target"] else SERIES for c in range(len(shares))]
        axes.bar(range(len(shares)), shares, color=colours)
        into = shares[record["target"]]
        axes.set_title(f"epsilon = {epsilon}/255\n{into:.0f} % into class {record['target']}")
        axes.set_xlabel("class given")
        axes.set_xticks(range(len(shares)))
    grid[0].set_ylabel("images, %")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="from the JSON that is there")
    path = RESULTS / "fig4-demo.json"
    if not parser.parse_args().draw:
        demo = demo_network()
        settings = SynthesizeSettings(count=256)
        record = {
            "command": "python -m benchmarks.studies.fig4",
            "network": "the demo's ResNet-20 (BadNets, class 3); the deck's attacker has class 0",
            "seed": SEED,
            "environment": environment(),
            **measure(demo.network, demo.target, settings),
        }
        write_whole(path, json.dumps(record))
    save(draw(json.loads(path.read_text())), path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
