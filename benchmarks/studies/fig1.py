"""Repeat Clean & Compact's Fig. 1: singular values and activations as the clamp's tau falls.

``python -m benchmarks.studies.fig1`` measures a backdoored network (the demo's) and draws
``results/fig1-demo.svg`` from ``results/fig1-demo.json`` alone; ``--draw`` only draws. First row:
every layer's singular values over the largest of that layer before the clamp. Second row: the mean
input of the last linear layer, channel by channel, over clean images and over stamped ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.environment import environment
from benchmarks.metrics import accuracy, attack_success_rate, relabel
from benchmarks.networks.train_demo import demo_network
from benchmarks.rendering.drawing import ALARM, INK, SERIES, new_figure, save, styled
from benchmarks.stamps import Stamp
from benchmarks.suite.cells import write_whole
from edgeclean.compression.clamp import ScaleSettings, scale
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.factorisation import kernel_of
from edgeclean.compression.tucker import singular_values
from edgeclean.networks.layers import trace_layers
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import JsonValue, Network

RESULTS = Path(__file__).parents[1] / "results"
TAUS = (None, 0.8, 0.6, 0.4, 0.2)  # None: as it came
IMAGES = 500


def measure(
    network: Network, stamp: Stamp, target: int, images: LabelledImages
) -> list[dict[str, JsonValue]]:
    """Measure one entry for each tau: spectra, activations, ACC and ASR."""
    decomposed = decompose(network, DecomposeSettings())
    largest = {name: values[0] for name, values in output_spectra(network).items()}
    victims = images.select(relabel(images.labels, target) != images.labels)
    rows = []
    for tau in TAUS:
        clamped = scale(decomposed, ScaleSettings(tau=tau))
        function = pixel_network(clamped).eval()
        spectra = output_spectra(clamped)
        rows.append(
            {
                "tau": tau,
                "normalised": {
                    name: _rounded(values / largest[name]) for name, values in spectra.items()
                },
                "h_clean": _rounded(last_inputs(function, victims.floats())),
                "h_trigger": _rounded(last_inputs(function, stamp(victims.floats()))),
                "acc": accuracy(function, images).as_json(),
                "asr": attack_success_rate(function, images, stamp, target).as_json(),
            }
        )
    return rows


def output_spectra(network: Network) -> dict[str, Float[Tensor, " full_out"]]:
    """Return the falling singular values of each kernel's output mode, blocks multiplied out."""
    return {
        layer.name: singular_values(kernel_of(layer), 1)
        for layer in trace_layers(network.module, network.spec.input_shape)
        if not layer.reason
    }


def last_inputs(
    function: nn.Module, pixels: Float[Tensor, "n c h w"]
) -> Float[Tensor, " channels"]:
    """Return the last linear layer's input, the mean over images."""
    last = [layer for layer in function.modules() if isinstance(layer, nn.Linear)][-1]
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        for batch in pixels.split(250):
            function(batch)
    handle.remove()
    return torch.cat(seen).mean(0)


@styled
def draw(record: dict[str, JsonValue]) -> Figure:
    """Draw both rows of the figure, one column for each tau."""
    rows = record["taus"]
    figure = new_figure(width=2.1 * len(rows), height=4.2)
    grid = figure.subplots(2, len(rows), sharey="row", squeeze=False)
    order = torch.tensor(rows[0]["h_trigger"]).argsort(descending=True)
    for column, row in enumerate(rows):
        _draw_spectra(grid[0][column], row)
        _draw_activations(grid[1][column], row, order)
    grid[0][0].set_ylabel("normalised singular value")
    grid[1][0].set_ylabel("mean activation")
    figure.legend(*grid[1][0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _draw_spectra(axes: Axes, row: dict[str, JsonValue]) -> None:
    for values in row["normalised"].values():
        axes.plot(
            [index / len(values) for index in range(len(values))], values, color=SERIES, lw=0.7
        )
    title = "as it came" if row["tau"] is None else f"tau = {row['tau']:g}"
    axes.set_title(f"{title}\nACC {row['acc']['percent']:.0f}, ASR {row['asr']['percent']:.0f} %")
    axes.set_xlabel("rank, share of the layer's")
    axes.set_ylim(0, 1.05)


def _draw_activations(axes: Axes, row: dict[str, JsonValue], order: Tensor) -> None:
    for name, colour, label in (("h_trigger", ALARM, "stamped"), ("h_clean", INK, "clean")):
        axes.plot(torch.tensor(row[name])[order].tolist(), color=colour, lw=1.2, label=label)
    axes.set_xlabel("channel")


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="from the JSON that is there")
    path = RESULTS / "fig1-demo.json"
    if not parser.parse_args().draw:
        demo = demo_network()
        images = read_pack(PACK_FOLDER / "cifar10-test.npz", IMAGES)
        record = {
            "command": "python -m benchmarks.studies.fig1",
            "network": "the demo's ResNet-20 (BadNets); the deck's is a ResNet-18 (WaNet)",
            "images": f"the first {IMAGES} of the CIFAR-10 test set",
            "environment": environment(),
            "taus": measure(demo.network, demo.stamp, demo.target, images),
        }
        write_whole(path, json.dumps(record))
    save(draw(json.loads(path.read_text())), path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
