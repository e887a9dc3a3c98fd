"""Measure latency on a CUDA device, networks in turns; `benchmarks.studies.gpu` runs it last.

ResNet-18 and MobileNetV2 for 224x224 images and ResNet-18 for 32x32 ones, all of random weights:
the original, ours and torch-pruning's at 2x and 4x fewer MACs, in ONNX Runtime's CUDA provider and
as PyTorch networks replayed from CUDA graphs; FP32, TF32 and FP16; batch 1, 8 and 64. Our ranks are
planned by energy at a ratio of MACs, as in `benchmarks.studies.runtimes`, and are multiples of 8;
torch-pruning's channels are left as they are, which meets the ratio best, and rounded to 8. Images
and logits stay on the device. A cell holds all networks of one runtime, precision and batch, which
take turns; it is kept once done, so an interrupted run goes on.
On a processor the same cells run without graphs, and TF32 is FP32 there: that shows that all of it
works, and no more.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.environment import environment
from benchmarks.studies import latency_models as models
from benchmarks.studies.latency import in_turns, speedups
from benchmarks.studies.runtimes import compressed
from benchmarks.suite.cells import Cell, write_whole
from edgeclean.errors import EdgecleanError, ToolchainError
from edgeclean.load.limits import LoadLimits
from edgeclean.load.onnx.importer import check_computed_as_written, import_onnx
from edgeclean.measure.block_backends import milliseconds
from edgeclean.measure.block_turns import Run
from edgeclean.measure.cuda_latency import captured, event_timed
from edgeclean.networks.cost import count_macs
from edgeclean.networks.state import Network
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.precision.half import to_fp16
from exporters.session import NAMES, Provider, require_provider

NAME = "gpu-latency"
NETWORKS = ("cifar-resnet18", "resnet18", "mobilenet-v2")
RUNTIMES = ("torch", "onnxruntime")
PRECISIONS = ("fp32", "tf32", "fp16")
BATCHES = (1, 8, 64)
RATIOS = (2.0, 4.0)
PEER = "torch-pruning"
ROUNDED = f"{PEER}, rounded to {models.ROUND_TO}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyPlan:
    """The cells to measure, and the length of each.

    Attributes:
        networks: names of `latency_models.NETWORKS`.
        batches: images in one run.
        runs: measured runs of each network of a cell.
        seconds: after which a cell ends with fewer runs, but at least 15 of each.
    """

    networks: Sequence[str] = NETWORKS
    batches: Sequence[int] = BATCHES
    runs: int = 100
    seconds: float = 20.0

    def cells(self) -> list[tuple[str, str, str, int]]:
        """Return network, runtime, precision and batch of every cell, in their order."""
        by_need = product(self.networks, self.batches, RUNTIMES, PRECISIONS)
        return [(name, runtime, precision, batch) for name, batch, runtime, precision in by_need]


def missing_runtimes(device: str) -> dict[str, str]:
    """Return the runtimes that cannot run on the device, each with what it lacks."""
    missing = {}
    if device == "cuda" and not torch.cuda.is_available():
        missing["torch"] = "PyTorch sees no CUDA device here"
    try:
        require_provider(_provider(device))
    except EdgecleanError as lacking:
        missing["onnxruntime"] = str(lacking)
    return missing


def measure(
    key: tuple[str, str, str, int], plan: LatencyPlan, device: str, folder: Path
) -> Cell | None:
    """Measure a cell and keep it; None where it is kept already.

    Raises:
        ToolchainError: the runtime cannot start on the device.
        EdgecleanError: it cannot load or run a network.
        RuntimeError: the device cannot.
    """
    path = cell_path(key, device, folder)
    if path.exists():
        return None
    name, runtime, precision, batch = key
    about, started = environment(), time.perf_counter()  # the load before measuring
    networks, refused = networks_of(name)
    with _computing_in(precision):
        open_one = _torch_run if runtime == "torch" else _onnx_run
        timed = [open_one(_file(name, one), precision, batch, device) for one in networks]
        gc.collect()
        latencies = in_turns(timed, runs=plan.runs, seconds=plan.seconds)
    rows = speedups(latencies, list(networks))
    for one, row in rows.items():
        row["macs_ratio"] = round(_macs(networks["original"]) / _macs(networks[one]), 3)
    cell: Cell = {
        "network": name,
        "side": models.NETWORKS[name],
        "runtime": runtime,
        "version": torch.__version__ if runtime == "torch" else onnxruntime.__version__,
        "precision": precision,
        "batch": batch,
        "on": device,
        "rows": rows,
        "refused": refused,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": about,
    }
    write_whole(path, json.dumps(cell, indent=1, sort_keys=True))
    return cell


@cache
def networks_of(name: str) -> tuple[dict[str, Network], dict[str, str]]:
    """Return the original, ours and the peer's by name, and why one of them cannot be."""
    original = models.original(name)
    made: dict[str, Network] = {"original": original}
    refused: dict[str, str] = {}
    for ratio in RATIOS:
        makers = {
            f"ours {ratio:g}x": partial(compressed, name, ratio),
            f"{PEER} {ratio:g}x": partial(models.channel_pruned, original, ratio),
            f"{ROUNDED} {ratio:g}x": partial(
                models.channel_pruned, original, ratio, models.ROUND_TO
            ),
        }
        for one, make in makers.items():
            try:
                made[one] = make()
            except (EdgecleanError, ImportError, ValueError) as reason:
                refused[one] = str(reason)
    return made, refused


def write_table(plan: LatencyPlan, results: Path, folder: Path, device: str) -> None:
    """Write ``gpu-latency.json`` and ``.md``, of the plan's cells; new ones replace earlier."""
    measured = [json.loads(one.read_text()) for one in sorted(folder.glob(f"{device}-*.json"))]
    path = results / f"{NAME}.json"
    before = json.loads(path.read_text())["cells"] if path.exists() else []
    keys = ("network", "runtime", "precision", "batch")
    known = {tuple(cell[key] for key in keys): cell for cell in [*before, *measured]}
    order = plan.cells()
    cells = [known[key] for key in order if key in known]
    if not cells:
        return
    whole = {"command": "python -m benchmarks.studies.gpu --part latency", "cells": cells}
    write_whole(path, json.dumps({**whole, "asked": len(order)}, indent=1, sort_keys=True))
    names = [f"{who} {ratio:g}x" for ratio in RATIOS for who in ("ours", PEER, ROUNDED)]
    head = ["network", "batch", "runtime", "precision", "original ms", *names]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [line_of(cell, names) for cell in cells]
    machines = dict.fromkeys(cell["environment"]["device"] for cell in cells)
    lines += ["", f"On {', '.join(machines)}; {len(cells)} of {len(order)} cells have been run."]
    write_whole(results / f"{NAME}.md", "\n".join(lines))


def line_of(cell: Cell, names: Sequence[str]) -> str:
    """Return one line of the table: medians, and the 95 % interval of each speed-up."""
    values = [
        f"{cell['network']} {cell['side']}x{cell['side']}",
        str(cell["batch"]),
        f"{cell['runtime']} {cell['version']}",
        cell["precision"],
        "{p50_ms:.3g} ± {0:.0f} %".format(
            100 * cell["rows"]["original"]["coefficient_of_variation"], **cell["rows"]["original"]
        ),
    ]
    for name in names:
        row = cell["rows"].get(name)
        said = "refused"
        if row is not None:
            low, high = row["speedup_interval"]
            said = f"{row['speedup']:.2f} [{low:.2f}, {high:.2f}] at {row['macs_ratio']:.2f}x"
        values.append(said)
    return f"| {' | '.join(values)} |"


def cell_path(key: tuple[str, str, str, int], device: str, folder: Path) -> Path:
    """Return the path of a cell; those of a processor never stand among those of a GPU."""
    return folder / f"{'-'.join([device, *map(str, key)])}.json"


@cache
def _file(name: str, which: str) -> bytes:
    """Return the network as ONNX with an open batch, from which both runtimes take it."""
    return export_onnx(networks_of(name)[0][which], ExportSettings(batch=None))


def _macs(network: Network) -> int:
    return count_macs(network.module, network.spec.input_shape)


def _torch_run(model: bytes, precision: str, batch: int, device: str) -> Run:
    """Return a function that runs the file's network in PyTorch once and returns milliseconds.

    FP16 is in channels-last order, which tensor cores take.
    """
    imported = import_onnx(model, LoadLimits(), folder=Path())
    check_computed_as_written(imported)
    kind = torch.float16 if precision == "fp16" else torch.float32
    images = torch.from_numpy(_images(batch, imported.input_shape)).to(device, kind)
    module = imported.module.to(device, kind).eval()
    if precision == "fp16":
        images = images.contiguous(memory_format=torch.channels_last)
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device == "cuda":
        return event_timed(captured(module, images))
    return partial(_inferred, partial(module, images))


def _inferred(run: partial[torch.Tensor]) -> float:
    with torch.inference_mode():
        return milliseconds(run, threads=torch.get_num_threads())


def _onnx_run(model: bytes, precision: str, batch: int, device: str) -> Run:
    """Return the same in ONNX Runtime, whose provider keeps images and logits on the device."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    provider = NAMES[_provider(device)]
    how = {"use_tf32": "0" if precision == "fp32" else "1"} if device == "cuda" else {}
    session = onnxruntime.InferenceSession(
        to_fp16(model) if precision == "fp16" else model, options, providers=[(provider, how)]
    )
    if session.get_providers()[0] != provider:
        raise ToolchainError(f"ONNX Runtime could not start its {provider}; check its libraries")
    (entry,), (exit_,) = session.get_inputs(), session.get_outputs()
    bound = session.io_binding()
    images = _images(batch, tuple(entry.shape[1:]))
    bound.bind_ortvalue_input(entry.name, onnxruntime.OrtValue.ortvalue_from_numpy(images, device))
    bound.bind_output(exit_.name, device)

    def run() -> None:
        session.run_with_iobinding(bound)
        bound.synchronize_outputs()

    return partial(_waited if device == "cuda" else _processed, run)


def _waited(run: Callable[[], object]) -> float:
    """Return wall time: while it waits for the device the thread takes none of the processor's."""
    started = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - started) / 1e6


def _processed(run: Callable[[], object]) -> float:
    return milliseconds(run, threads=torch.get_num_threads())


def _images(batch: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)


def _provider(device: str) -> Provider:
    return "cuda" if device == "cuda" else "cpu"


@contextmanager
def _computing_in(precision: str) -> Iterator[None]:
    """Let PyTorch's convolutions and products use TF32 where it is asked, and only there."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32 = products.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before
