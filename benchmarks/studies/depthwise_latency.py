"""Measure the files that `benchmarks.studies.depthwise` keeps, all of one ratio in turns.

ONNX Runtime, one and two threads, as in `benchmarks.studies.latency`: one thread is timed by its
own processor time, two by the wall clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.rendering.depthwise_table import METHODS, Key
from benchmarks.studies.latency import THREADS, latencies_in_turns, speedups
from benchmarks.suite.cells import Cell

FOLDER = Path(__file__).parents[2] / ".bench" / "depthwise"


def onnx_path(key: Key) -> Path:
    """Return the path of a row's ONNX file."""
    return FOLDER / f"{key.network}-{key.method}-{key.effort}-{key.ratio:g}x-seed{key.seed}.onnx"


def measure_latencies(rows: Sequence[Key]) -> dict[str, Cell]:
    """Measure every network, ratio and effort that has files here, by the name of the cell."""
    cells: dict[str, Cell] = {}
    for network, effort, ratio, seed in sorted(
        {(key.network, key.effort, key.ratio, key.seed) for key in rows}
    ):
        at = Key(network=network, method="original", effort=effort, ratio=1.0, seed=seed)
        files = {"original": onnx_path(at)} | {
            method: onnx_path(at._replace(method=method, ratio=ratio)) for method in METHODS
        }
        present = {name: path for name, path in files.items() if path.exists()}
        if "original" not in present or len(present) < 2:
            continue
        for threads in THREADS:
            about = environment()  # the load before measuring
            content = {name: path.read_bytes() for name, path in present.items()}
            taken = latencies_in_turns(content, threads)
            cells[f"{network} {ratio:g}x {effort} seed {seed} threads {threads}"] = {
                "network": network,
                "ratio": ratio,
                "effort": effort,
                "seed": seed,
                "threads": threads,
                "rows": speedups(taken, list(present)),
                "environment": about,
            }
    return cells
