"""`edgeclean bench`: a bundle against its original, on this machine or on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.errors import BudgetError, UsageError
from edgeclean.files.text import printable

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.measure.latency import LatencyReport

HERE = "On this machine"
THERE = "On a device"
UNSTEADY = 0.025  # the same mark as in `edgeclean.measure.latency`


def bench(  # noqa: PLR0913 - the options are the interface
    bundle: opt.BundleFolder,
    against: Annotated[
        Path | None,
        typer.Option(
            help="The original as ONNX (`edgeclean export CHECKPOINT -o original.onnx`); a bundle "
            "with a kit brings its own.",
            rich_help_panel=HERE,
        ),
    ] = None,
    provider: Annotated[
        str,
        typer.Option(
            help="Of ONNX Runtime: cpu, cuda, tensorrt; or torch-cuda, PyTorch with CUDA graphs.",
            rich_help_panel=HERE,
        ),
    ] = "cpu",
    runtime: Annotated[
        str,
        typer.Option(
            help="What runs both: onnxruntime, or one that the bundle holds files of, such as "
            "openvino.",
            rich_help_panel=HERE,
        ),
    ] = "onnxruntime",
    threads: Annotated[
        int, typer.Option(min=1, max=1024, help="Of the runtime.", rich_help_panel=HERE)
    ] = 1,
    runs: Annotated[
        int, typer.Option(min=1, help="Measured runs of each network.", rich_help_panel=HERE)
    ] = 200,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the random input.", rich_help_panel=HERE)
    ] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="ssh://user@host[:port]: measure there.", rich_help_panel=THERE),
    ] = None,
    ssh_config: Annotated[
        Path | None,
        typer.Option(help="An ssh configuration file of its own.", rich_help_panel=THERE),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Of original and compressed.", rich_help_panel=THERE)
    ] = 5,
    seconds: Annotated[
        int, typer.Option(min=1, help="Each network in each round.", rich_help_panel=THERE)
    ] = 2,
    workspace_mib: Annotated[
        int, typer.Option(min=1, help="For TensorRT's builder.", rich_help_panel=THERE)
    ] = 1024,
    dla_core: Annotated[
        int | None, typer.Option(min=0, help="Build for this DLA core.", rich_help_panel=THERE)
    ] = None,
    trtexec: Annotated[
        str | None, typer.Option(help="Its path on the device.", rich_help_panel=THERE)
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option(help="Exit with code 6 if the median gains less.")
    ] = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Measure a bundle's network and the original in turns, here or on a device over ssh."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    if device is not None:
        if against is not None or provider != "cpu" or runtime != "onnxruntime":
            raise UsageError(
                "--device measures with TensorRT against the kit's own original; leave --against, "
                "--provider and --runtime out"
            )
        document = _there(
            reporter,
            bundle,
            (device, ssh_config),
            {
                "rounds": rounds,
                "seconds": seconds,
                "workspace_mib": workspace_mib,
                "dla_core": dla_core,
                "trtexec": trtexec,
            },
        )
        speedup, where = document["latency"]["speedup"], "this device"
    else:
        settings = {"threads": threads, "runs": runs, "seed": seed, "provider": provider}
        report = _here(reporter, bundle, against, settings, runtime)
        means = provider if runtime == "onnxruntime" else runtime
        speedup, where = report.speedup, f"{threads} threads of this machine with {means}"
    if min_speedup is not None and speedup < min_speedup:
        raise BudgetError(
            f"the speed-up is {speedup:.2f}, and at least {min_speedup:g} was asked; on "
            f"{where} this bundle does not give it"
        )


def _here(
    reporter: Reporter,
    bundle: Path,
    against: Path | None,
    settings: dict[str, Any],
    runtime: str,
) -> LatencyReport:
    from edgeclean.bundle.manifest import MODEL
    from edgeclean.bundle.verify import open_bundle
    from edgeclean.config import settings_from
    from edgeclean.measure.bundled_runtime import measure_bundled
    from edgeclean.measure.cuda_latency import measure_pair_on_cuda
    from edgeclean.measure.latency import LatencySettings
    from edgeclean.measure.untrusted_latency import measure_untrusted_pair

    on_torch = settings["provider"] == "torch-cuda"
    if runtime != "onnxruntime" and settings["provider"] != "cpu":
        raise UsageError(
            f"{runtime} is measured on the CPU; leave --provider out, which is ONNX Runtime's"
        )
    checked = {**settings, "provider": "cpu"} if on_torch else settings
    how = settings_from(LatencySettings, checked, where="options")
    with reporter.progress() as progress:
        progress("Verifying", 0, 1)
        opened = open_bundle(bundle)
        original, name = _original(opened.files, against)
        progress("Verifying", 1, 1)
        progress("Measuring", 0, 1)
        if runtime != "onnxruntime":
            report = measure_bundled(opened.manifest, opened.files, original, runtime, how)
        elif on_torch:
            report = measure_pair_on_cuda(original, opened.model, how)
        else:
            report = measure_untrusted_pair(original, opened.model, how, names=(name, MODEL))
        progress("Measuring", 1, 1)
    samples = {"original": asdict(report.original), "compressed": asdict(report.compressed)}
    table = _table(samples, report.kind)
    interval = f"{report.speedup_low:.2f} to {report.speedup_high:.2f}"
    table.add_row(*cells("speed-up", f"{report.speedup:.2f}x", interval))
    reporter.answer(asdict(report), table)
    if not report.steady:
        reporter.note("the machine was not steady: read the spread before the ratio")
    return report


def _original(files: Mapping[str, bytes], against: Path | None) -> tuple[bytes, str]:
    """The ONNX file to compare with, and its name for messages."""
    from edgeclean.bundle.kit import ORIGINAL
    from edgeclean.load.limits import LoadLimits, read_input

    if against is not None:
        return read_input(against, LoadLimits().file_bytes), printable(str(against))
    if ORIGINAL not in files:
        raise UsageError(
            "this bundle has no original to compare with; give --against, which "
            "`edgeclean export CHECKPOINT -o original.onnx` writes"
        )
    return files[ORIGINAL], ORIGINAL


def _there(
    reporter: Reporter, bundle: Path, place: tuple[str, Path | None], settings: dict[str, Any]
) -> dict[str, Any]:
    from edgeclean.bundle.remote_bench import RemoteSettings, bench_on_device
    from edgeclean.devices.ssh import parse_device

    reached = parse_device(place[0], configuration=place[1])
    document = bench_on_device(bundle, reached, RemoteSettings(**settings), log=reporter.note)
    latency = document["latency"]
    table = _table(latency, latency["kind"])
    table.add_row(*cells("speed-up", f"{latency['speedup']:.2f}x"))
    about = plain_table("", "")
    about.add_row(*cells("device", document["device"]["model"]))
    about.add_row(*cells("TensorRT", document["tensorrt"]))
    about.add_row(*cells("power mode", document["power_mode"]))
    for name, engine in document["engines"].items():
        found = engine["layer_precisions"]
        layers = found and ", ".join(f"{count} {kind}" for kind, count in found.items())
        about.add_row(*cells(f"layers of the {name} engine", layers))
    reporter.answer(document, table, about)
    spread = max(latency[one]["coefficient_of_variation"] for one in ("original", "compressed"))
    if spread > UNSTEADY:
        reporter.note(
            "the device was not steady: read the spread, and pin its clocks (jetson_clocks)"
        )
    return document


def _table(samples: dict[str, Any], kind: str) -> Table:
    table = plain_table("ms", ">p50", ">p90", ">p99", ">least", ">spread", "row")
    for name in ("original", "compressed"):
        sample = samples[name]
        times = (f"{sample[key]:.3g}" for key in ("p50_ms", "p90_ms", "p99_ms", "min_ms"))
        table.add_row(*cells(name, *times, f"{sample['coefficient_of_variation']:.1%}", kind))
    return table
