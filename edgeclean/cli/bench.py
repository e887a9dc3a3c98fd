"""`edgeclean bench`: a bundle against its original, on this machine or on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeclean.cli import options as opt
from edgeclean.cli.bench_device import bench_there, times_table
from edgeclean.cli.console import Reporter, cells
from edgeclean.errors import BudgetError, UsageError
from edgeclean.files.text import counted, printable

if TYPE_CHECKING:
    from edgeclean.measure.latency import LatencyReport

HERE = "On this machine"
THERE = "On a device"
ONNX_RUNTIME = "onnxruntime"
RUNS, ROUNDS, SECONDS = 200, 5, 2


def bench(  # noqa: PLR0913 - the options are the interface
    bundle: opt.BundleFolder,
    against: Annotated[
        Path | None,
        typer.Option(
            help="The original as ONNX (`edgeclean export CHECKPOINT -o original.onnx`); a bundle "
            "with a kit brings its own.",
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
        str | None,
        typer.Option(
            help="What runs both: onnxruntime, or one that the bundle holds files of, such as "
            "openvino. Here onnxruntime if not given, on a device that of the bundle's target.",
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Of the runtime; 1 if not given.")
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Measured runs of each network; {RUNS} if not given.",
            rich_help_panel=HERE,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of the random input; 0 if not given.", rich_help_panel=HERE),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="ssh://user@host[:port]: measure there.", rich_help_panel=THERE),
    ] = None,
    ssh_config: Annotated[
        Path | None,
        typer.Option(help="An ssh configuration file of its own.", rich_help_panel=THERE),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Of original and compressed; {ROUNDS} if not given.",
            rich_help_panel=THERE,
        ),
    ] = None,
    seconds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Each network in each round; {SECONDS} if not given.",
            rich_help_panel=THERE,
        ),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            help="The device's Python that has the runtime, such as env/bin/python; python3 if "
            "not given.",
            rich_help_panel=THERE,
        ),
    ] = None,
    workspace_mib: Annotated[
        int | None,
        typer.Option(
            min=1, help="For TensorRT's builder; 1024 if not given.", rich_help_panel=THERE
        ),
    ] = None,
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
    there = {"rounds": rounds, "seconds": seconds, "python": python}
    there |= {"workspace_mib": workspace_mib, "dla_core": dla_core, "trtexec": trtexec}
    if min_speedup is not None and min_speedup <= 0:
        raise UsageError(f"--min-speedup is {min_speedup:g}; it must be above 0")
    _refuse_idle(device, {"runs": runs, "seed": seed}, {**there, "ssh_config": ssh_config})
    if device is not None:
        if provider != "cpu":
            raise UsageError(
                "--device takes no --provider: with TensorRT, whose kit brings its original, leave "
                "--against, --provider and --runtime out; in another runtime, --provider"
            )
        asked: dict[str, Any] = {**there, "threads": threads, "against": against}
        asked |= {"rounds": rounds or ROUNDS, "seconds": seconds or SECONDS}
        document = bench_there(reporter, bundle, (device, ssh_config), runtime, asked)
        speedup, where = document["latency"]["speedup"], "this device"
    else:
        means, threads = runtime or ONNX_RUNTIME, threads or 1
        settings: dict[str, Any] = {"threads": threads, "runs": runs or RUNS, "seed": seed or 0}
        settings |= {"provider": provider}
        report = _here(reporter, bundle, against, settings, means)
        means = provider if means == ONNX_RUNTIME else means
        speedup, where = (
            report.speedup,
            f"{counted(threads, 'thread')} of this machine with {means}",
        )
    if min_speedup is not None and speedup < min_speedup:
        raise BudgetError(
            f"the speed-up is {speedup:.2f}, and at least {min_speedup:g} was asked; on "
            f"{where} this bundle does not give it"
        )


def _refuse_idle(device: str | None, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    """Refuse options of the place that is not measured: they would be ignored."""
    idle = there if device is None else here
    names = [f"--{name.replace('_', '-')}" for name, value in idle.items() if value is not None]
    if names:
        way = (
            "a device; name one with --device, or leave that out"
            if device is None
            else "a measurement on this machine; leave that out, or --device"
        )
        raise UsageError(f"{' and '.join(names)}: of {way}")


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
    from edgeclean.settings import checked
    from exporters.session import Provider

    checked(Literal[Provider, "torch-cuda"], settings["provider"], "options: provider")
    on_torch = settings["provider"] == "torch-cuda"
    if runtime != ONNX_RUNTIME and settings["provider"] != "cpu":
        raise UsageError(
            f"{runtime} is measured on the CPU; leave --provider out, which is ONNX Runtime's"
        )
    settings = {**settings, "provider": "cpu"} if on_torch else settings
    how = settings_from(LatencySettings, settings, where="options")
    with reporter.progress() as progress:
        progress("Verifying", 0, 1)
        opened = open_bundle(bundle)
        original, name = _original(opened.files, against)
        progress("Verifying", 1, 1)
        progress("Measuring", 0, 1)
        if runtime != ONNX_RUNTIME:
            report = measure_bundled(opened.manifest, opened.files, original, runtime, how)
        elif on_torch:
            report = measure_pair_on_cuda(original, opened.model, how)
        else:
            report = measure_untrusted_pair(original, opened.model, how, names=(name, MODEL))
        progress("Measuring", 1, 1)
    samples = {"original": asdict(report.original), "compressed": asdict(report.compressed)}
    table = times_table(samples, report.kind)
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
