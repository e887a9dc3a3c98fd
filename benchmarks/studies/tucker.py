"""Time Tucker-2 of ResNet-50's convolutions at half ranks, `compression.tucker` against TensorLy.

    python -m benchmarks.studies.tucker

The kernels have ResNet-50's shapes and two kinds of values: ``gaussian``, as at initialisation,
whose flat spectra are the hardest for a truncated SVD; and ``falling``, whose singular values fall
by a factor of about 30 as those of trained kernels do. One thread; shapes that occur several times
are timed once and counted as often as they occur.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import Tensor, nn

from benchmarks.environment import environment
from edgeclean.compression.tucker import full_ranks, tucker2
from edgeclean.load.architectures import build_architecture
from edgeclean.networks.state import ModelSpec

OUTPUT = Path(__file__).parents[1] / "results" / "tucker.json"
RUNS = 3
LONG_SECONDS = 2.0  # what takes longer is run once

Shape = tuple[int, int, int, int]
Outcome = TypeVar("Outcome")


def main() -> None:
    """Measure both families of kernels, and write ``results/tucker.json`` and ``.md``."""
    argparse.ArgumentParser(description="Time Tucker-2 against TensorLy.").parse_args()
    torch.set_num_threads(1)
    _timed(lambda: tucker2(torch.randn(8, 8, 3, 3)))
    counts = resnet50_shapes()
    families = {name: family(name, counts) for name in ("gaussian", "falling")}
    OUTPUT.write_text(
        json.dumps(
            {
                "command": "python -m benchmarks.studies.tucker",
                "environment": environment(),
                "ranks": "half of the full ranks, in both modes",
                "seconds": f"CPU; median of {RUNS}, or one of over {LONG_SECONDS:g}",
                "reference": "tensorly.decomposition.partial_tucker at its defaults, torch backend",
                "families": families,
            },
            indent=1,
        )
        + "\n"
    )
    OUTPUT.with_suffix(".md").write_text(table(families))


def table(families: dict[str, Any]) -> str:
    """Return the totals as Markdown."""
    lines = ["| kernels | sweeps | times faster | largest error ratio |", "|---|---|---|---|"]
    for name, family_rows in families.items():
        for sweeps in ("sweeps_0", "sweeps_1"):
            total = family_rows["total"][sweeps]
            lines.append(
                f"| {name} | {sweeps[-1]} | {total['times_faster']:.1f} "
                f"| {total['largest_error_ratio']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def resnet50_shapes() -> Counter[Shape]:
    spec = ModelSpec(
        architecture="resnet50",
        input_shape=(3, 224, 224),
        classes=1000,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    module = build_architecture("resnet50", spec, ())
    shapes = (layer.weight.shape for layer in module.modules() if isinstance(layer, nn.Conv2d))
    return Counter((s[0], s[1], s[2], s[3]) for s in shapes)


def family(name: str, counts: Counter[Shape]) -> dict[str, Any]:
    rows = []
    for done, (shape, count) in enumerate(counts.items(), start=1):
        rows.append(row(name, shape, count))
        print(f"{name}: {done} of {len(counts)} shapes", file=sys.stderr)
    totals: dict[str, Any] = {
        "partial_tucker_seconds": sum(r["count"] * r["partial_tucker"]["seconds"] for r in rows)
    }
    for sweeps in ("sweeps_0", "sweeps_1"):
        seconds = sum(r["count"] * r[sweeps]["seconds"] for r in rows)
        totals[sweeps] = {
            "seconds": seconds,
            "times_faster": totals["partial_tucker_seconds"] / seconds,
            "largest_error_ratio": max(r[sweeps]["error_ratio"] for r in rows),
            "mean_error_ratio": statistics.fmean(
                r[sweeps]["error_ratio"] for r in rows for _ in range(r["count"])
            ),
        }
    return {"total": totals, "layers": rows}


def row(name: str, shape: Shape, count: int) -> dict[str, Any]:
    kernel = make_kernel(name, shape)
    half_out, half_in = (max(1, rank // 2) for rank in full_ranks(kernel))
    seconds, rebuilt = _timed(lambda: _partial_tucker(kernel, (half_out, half_in)))
    reference = _relative_error(kernel, rebuilt)
    measured: dict[str, Any] = {
        "shape": shape,
        "count": count,
        "ranks": (half_out, half_in),
        "partial_tucker": {"seconds": seconds, "relative_error": reference},
    }
    for sweeps in (0, 1):
        seconds, tucker = _timed(
            lambda sweeps=sweeps: tucker2(kernel, (half_out, half_in), sweeps=sweeps)
        )
        error = _relative_error(kernel, tucker.kernel())
        measured[f"sweeps_{sweeps}"] = {
            "seconds": seconds,
            "relative_error": error,
            "error_ratio": error / reference,
        }
    return measured


def make_kernel(name: str, shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(math.prod(shape))
    kernel = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))
    if name == "gaussian":
        return kernel
    for mode in (0, 1):
        basis = torch.linalg.qr(torch.randn(shape[mode], shape[mode], generator=generator))[0]
        mix = basis * torch.logspace(0, -1.5, shape[mode])
        kernel = torch.einsum("oihw,op->pihw" if mode == 0 else "oihw,ip->ophw", kernel, mix.T)
    return kernel.contiguous()


def _partial_tucker(kernel: Tensor, ranks: tuple[int, int]) -> Tensor:
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        (core, factors), _ = partial_tucker(kernel, rank=list(ranks), modes=[0, 1])
        rebuilt: Tensor = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    return rebuilt


def _relative_error(kernel: Tensor, rebuilt: Tensor) -> float:
    return float((kernel - rebuilt).norm() / kernel.norm())


def _timed(run: Callable[[], Outcome]) -> tuple[float, Outcome]:
    """Return processor seconds: on one thread, wall time without that of other programs."""
    seconds: list[float] = []
    while True:
        start = time.process_time_ns()
        outcome = run()
        seconds.append((time.process_time_ns() - start) / 1e9)
        if len(seconds) == RUNS or seconds[-1] > LONG_SECONDS:
            return statistics.median(seconds), outcome


if __name__ == "__main__":
    main()
