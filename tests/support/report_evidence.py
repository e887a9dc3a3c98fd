"""Inputs of a report: a tiny network whose layers have names as a stranger may choose them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tiny_networks import tiny_pixels
from torch import nn

from edgeclean.backdoor.findings import ScanReport, SearchRecord, Suspect
from edgeclean.backdoor.selection import NamedClass, Selection
from edgeclean.backdoor.triggers import MaskedTrigger
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.factorisation import Factorisation, merge_block
from edgeclean.environment import describe_environment
from edgeclean.measure.latency import LatencyReport, LatencySample
from edgeclean.networks.blocks import is_block
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.layers import trace_layers, with_layers
from edgeclean.networks.state import (
    FinetunedNetwork,
    LoadedNetwork,
    ModelSpec,
    Network,
    PurifiedNetwork,
    StageRecord,
    SyntheticImages,
)
from edgeclean.report.layer_table import layer_rows, spectra
from edgeclean.report.report import ReportInputs, build_report
from exporters.parity import ParityRecord

# A module's name holds anything but a dot: HTML, mathtext, a terminal's escapes, reversed text.
HOSTILE = '<script>alert(1)</script>"$x_{$\x1b[31m\u202e'
SIDE = 12
CLASSES = 5


def original_network() -> LoadedNetwork:
    """Two convolutions and a linear layer; one convolution has the hostile name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential()
        module.add_module("stem", nn.Conv2d(3, 16, 3, padding=1, bias=False))
        module.add_module("norm", nn.BatchNorm2d(16))
        module.add_module(HOSTILE, nn.Conv2d(16, 16, 3, padding=1))
        module.add_module("pool", nn.AdaptiveAvgPool2d(1))
        module.add_module("flat", nn.Flatten())
        module.add_module("stem_head", nn.Linear(16, CLASSES))
    spec = ModelSpec(
        architecture="/home/somebody/secret/net.py:make",
        input_shape=(3, SIDE, SIDE),
        classes=CLASSES,
        mean=(0.5, 0.4, 0.3),
        std=(0.25, 0.25, 0.2),
    )
    loaded = LoadedNetwork(module=module.eval(), spec=spec, source_sha256="ab" * 32)
    return replace(loaded, history=(record("load", loaded),))


def record(stage: str, network: Network) -> StageRecord:
    """What a stage of no settings would write down."""
    return StageRecord(
        stage=stage,
        settings={},
        params=count_params(network.module),
        macs=count_macs(network.module, network.spec.input_shape),
        notes={},
    )


def halved(original: LoadedNetwork) -> FinetunedNetwork:
    """The hostile layer at half of its ranks, the stem as it was."""
    decomposed = decompose(original, DecomposeSettings(keep=("stem",)))
    blocks: dict[str, nn.Module] = {}
    for layer in trace_layers(decomposed.module, decomposed.spec.input_shape):
        if isinstance(layer.module, nn.Sequential) and is_block(layer.module):
            cut = Factorisation.from_block(layer.module).truncated(8, 6)
            blocks[layer.name] = cut.to_block(merge_block(layer.module))
    compressed = FinetunedNetwork(
        module=with_layers(decomposed.module, blocks).eval(),
        spec=original.spec,
        source_sha256=original.source_sha256,
        history=original.history,
    )
    return replace(compressed, history=(*original.history, record("finetune", compressed)))


def scan_report(*, suspected: bool = True, side: int = SIDE) -> ScanReport:
    """One search that suspects class 2 of the hostile network."""
    mask = torch.zeros(1, side, side)
    mask[:, 8:11, 8:11] = 1
    suspect = Suspect(
        target=2,
        search="masked patch",
        score=7.5,
        cost=9.0,
        success=0.98,
        trigger=MaskedTrigger(mask, tiny_pixels(1, side)[0]),
    )
    search = SearchRecord(
        name="masked patch",
        sees="patches",
        blind_to="warps & <b>blends</b>",
        cost_unit="pixels",
        costs=(90.0, 80.0, 9.0, float("inf"), 85.0),
        successes=(0.9, 0.9, 0.98, 0.2, 0.9),
        scores=(-0.2, 0.3, 7.5, 0.0, 0.1),
        threshold=2.3,
    )
    return ScanReport(
        verdict="suspected" if suspected else "not found",
        suspects=(suspect,) if suspected else (),
        searches=(search,),
        images=20,
    )


def partly_searched(report: ScanReport) -> ScanReport:
    """The same, as if class 1 had been named, class 2 drawn, and no other searched."""
    (search,) = report.searches
    named = (NamedClass(target=1, by=("patch bank",)),)
    return replace(
        report,
        searches=(replace(search, searched=(1, 2)),),
        selection=Selection(classes=CLASSES, named=named, drawn=(2,)),
    )


def synthetic_images(count: int = 20, side: int = SIDE) -> SyntheticImages:
    """Random pixels."""
    return SyntheticImages(
        pixels=tiny_pixels(count, side),
        labels=torch.arange(count) % CLASSES,
        origin="batch-norm inversion",
    )


def latency_sample(first_ms: float) -> LatencySample:
    """Ten runs, 0.01 ms apart."""
    runs = tuple(first_ms + 0.01 * step for step in range(10))
    return LatencySample(
        p50_ms=first_ms + 0.045,
        p90_ms=first_ms + 0.081,
        p99_ms=first_ms + 0.0891,
        min_ms=first_ms,
        mean_ms=first_ms + 0.045,
        coefficient_of_variation=0.02,
        runs=10,
        latencies_ms=runs,
    )


def evidence(*, suspected: bool = True, purified: bool = True) -> ReportInputs:
    """Of a whole run on the hostile network."""
    original = original_network()
    compressed = halved(original)
    teacher = original_network()
    if purified:
        with torch.no_grad():
            teacher.module.get_submodule("stem_head").bias.add_(1)
    environment = describe_environment()
    return ReportInputs(
        original=original,
        purified=PurifiedNetwork(
            module=teacher.module,
            spec=original.spec,
            source_sha256=original.source_sha256,
            history=original.history,
        ),
        compressed=compressed,
        images=synthetic_images(),
        scan=scan_report(suspected=suspected),
        layers=layer_rows(original, compressed),
        spectra=spectra(original, None, compressed),
        original_onnx_bytes=1_000_000,
        onnx_bytes=500_000,
        parity=ParityRecord(
            images=20,
            max_abs_difference=2e-6,
            max_relative_difference=1e-6,
            max_abs_logit=4.0,
            top1_agreement=1.0,
            tolerance=1e-4,
            runtime="onnxruntime 1, CPU",
        ),
        latency=LatencyReport(
            original=latency_sample(2.0),
            compressed=latency_sample(1.0),
            speedup=1.96,
            speedup_low=1.9,
            speedup_high=2.0,
            runtime="onnxruntime 1",
            provider="CPUExecutionProvider",
            threads=1,
            batch=1,
            input_shape=(3, SIDE, SIDE),
            warmup_runs=10,
            settled=True,
            steady=True,
            out_of_time=False,
            environment=environment,
        ),
        target={"name": "jetson", "description": "an Orin"},
        stage_seconds={"load": 0.1, "scan": 2.0, "finetune": 3.0},
        peak_memory_mib=300.0,
        environment=environment,
        seed=7,
        command="edgeclean compress model.pth -o build",
        settings_toml="seed = 7\n",
    )


def whole_report(**options: bool) -> dict[str, Any]:
    return {**build_report(evidence(**options)), "manifest_sha256": "ef" * 32}
