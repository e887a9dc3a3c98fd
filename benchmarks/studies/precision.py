"""Measure FP16 and INT8 of every published network: ``python -m benchmarks.studies.precision``.

Each network is exported as it was loaded (and, where ``.bench/compressed/NAME.onnx`` lies, the
compressed one is read), lowered by `exporters.precision` with synthetic images alone, and then run
under ONNX Runtime on test images that no step before has seen. A cell is written as it is done; an
interrupted run goes on with the next one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.data.images import PACK_FOLDER, LabelledImages, read_pack
from benchmarks.environment import environment
from benchmarks.metrics import PixelFunction, accuracy
from benchmarks.studies.published import RESULTS, published_networks
from edgeclean.images.synthesize import SynthesizeSettings, synthesize
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import JsonValue, ModelSpec
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.precision.lower import Precision, PrecisionSettings, lower_precision
from exporters.session import OnnxSession

Cell = dict[str, JsonValue]
BENCH = Path(__file__).parents[2] / ".bench"
CELLS = BENCH / "precision"
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")
GOAL_POINTS = {"fp16": 0.3, "int8": 1.0}
TEST_IMAGES = 2000


def main() -> None:
    """Measure every missing cell, and write the table."""
    options = _parser().parse_args()
    torch.set_num_threads(1)
    images = read_pack(PACK_FOLDER / "cifar10-test.npz", options.images)
    for name in options.network or published_networks():
        path = CELLS / f"{name}-seed{options.seed}.json"
        if not path.exists():
            cell = measure(name, options.seed, options.synthetic, images)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(cell, indent=1, sort_keys=True) + "\n")
            print(path.name, "done", flush=True)
    write_table()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=TEST_IMAGES)
    parser.add_argument("--synthetic", type=int, default=256, help="images to calibrate and judge")
    return parser


def measure(name: str, seed: int, synthetic: int, images: LabelledImages) -> Cell:
    """Measure ACC of one network in every precision."""
    published = published_networks()[name]
    network = published.load()
    settings = SynthesizeSettings(count=synthetic, batch_size=min(128, synthetic))
    drawn = synthesize(network, settings, seed=seed)
    models = {"as loaded": export_onnx(network, ExportSettings(batch=None))}
    compressed = BENCH / "compressed" / f"{name}.onnx"
    if compressed.exists():
        models["compressed"] = compressed.read_bytes()
    rows = [
        {"network": name, "which": which, **_row(model, published.spec, drawn.pixels, images)}
        for which, model in models.items()
    ]
    return {
        "command": f"python -m benchmarks.studies.precision --images {len(images)} --seed {seed} "
        f"--synthetic {synthetic}",
        "seed": seed,
        "test_images": len(images),
        "synthetic_images": {"count": len(drawn), "origin": drawn.origin},
        "rows": rows,
        "environment": environment(),
    }


def _row(model: bytes, spec: ModelSpec, pixels: Tensor, images: LabelledImages) -> Cell:
    before = accuracy(_function(model, spec), images)
    row: Cell = {"fp32": {"acc": before.as_json(), "onnx_bytes": len(model)}}
    for precision in PRECISIONS:
        lowered = lower_precision(model, spec, pixels, PrecisionSettings(format=precision))
        after = accuracy(_function(lowered.model, spec), images)
        points = round(after.percent - before.percent, 2)
        row[precision] = {
            "acc": after.as_json(),
            "points": points,
            "goal_points": GOAL_POINTS[precision],
            "goal_met": points >= -GOAL_POINTS[precision],
            "onnx_bytes": len(lowered.model),
            **lowered.summary(),
        }
    return row


def _function(model: bytes, spec: ModelSpec) -> PixelFunction:
    """Return a function from pixels in [0, 1] to logits, through ONNX Runtime."""
    session = OnnxSession(model)

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.predict(normalize(pixels, spec).numpy()))

    return run


def write_table() -> None:
    """Write ``results/precision.json`` and ``.md``, from the cells alone."""
    cells = [json.loads(path.read_text()) for path in sorted(CELLS.glob("*.json"))]
    command = "python -m benchmarks.studies.precision"
    whole = {"command": command, "cells": cells}
    (RESULTS / "precision.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    lines = [
        "| network | which | FP32 ACC | FP16 ACC (points) | INT8 ACC (points) "
        "| nodes kept FP16 / INT8 | agreement, dB: FP16; INT8 |",
        "|---|---|---|---|---|---|---|",
        *(line_of(row) for cell in cells for row in cell["rows"]),
    ]
    (RESULTS / "precision.md").write_text("\n".join(lines) + "\n")


def line_of(row: Cell) -> str:
    """Return one line of the table."""
    points = (f"{row[one]['acc']['percent']:.2f} ({row[one]['points']:+.2f})" for one in PRECISIONS)
    kept = " / ".join(str(len(row[one]["kept"])) for one in PRECISIONS)
    close = "; ".join(
        f"{100 * row[one]['agreement']['top1_agreement']:.1f} %, "
        f"{row[one]['agreement']['signal_to_noise_db']:.0f}"
        for one in PRECISIONS
    )
    return (
        f"| {row['network']} | {row['which']} | {row['fp32']['acc']['percent']:.2f} "
        f"| {' | '.join(points)} | {kept} | {close} |"
    )


if __name__ == "__main__":
    main()
