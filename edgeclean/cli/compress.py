"""`edgeclean compress`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclean.cli import options as opt
from edgeclean.cli.caches import stage_cache
from edgeclean.cli.console import Reporter, cells, plain_table
from edgeclean.cli.dependencies import InputFiles, checkpoint_files, code_file
from edgeclean.cli.runtimes import fastest_line, runtime_tables
from edgeclean.cli.scan import verdict_in_words
from edgeclean.cli.structure import layers_in_words, structure_warning
from edgeclean.errors import UsageError
from edgeclean.files.text import printable
from edgeclean.files.writing import keep_apart
from edgeclean.notes import note_output

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclean.bundle.signing import Signer
    from edgeclean.pipeline import WrittenCompression


def compress(  # noqa: PLR0913 - the options are the interface
    checkpoint: opt.Checkpoint,
    output: opt.Output,
    target: opt.TargetName = None,
    target_file: opt.TargetFile = None,
    jetpack: opt.JetPack = None,
    runtime: opt.RuntimeNames = None,
    ratio: opt.Ratio = None,
    keep_accuracy: opt.KeepAccuracy = None,
    speedup: opt.Speedup = None,
    latency_budget_ms: opt.LatencyBudget = None,
    size_budget: opt.SizeBudget = None,
    latency_table: opt.TableFile = None,
    measure: opt.Measure = None,
    keep: opt.Keep = None,
    forms: opt.Forms = None,
    rank_multiple: opt.RankMultiple = None,
    ranks_file: opt.RanksFile = None,
    purify: opt.Purify = None,
    tau: opt.Tau = None,
    fail_on_backdoor: opt.FailOnBackdoor = None,
    evaluate: opt.Evaluate = None,
    max_accuracy_drop: opt.MaxAccuracyDrop = None,
    max_expected_drop: opt.MaxExpectedDrop = None,
    max_size: opt.MaxSize = None,
    min_speedup: opt.MinSpeedup = None,
    policy: opt.PolicyFile = None,
    sign_key: opt.SignKey = None,
    sign_certificate: opt.SignCertificate = None,
    cache: opt.CacheFolder = None,
    no_cache: opt.NoCache = False,
    opset: opt.Opset = None,
    precision: opt.PrecisionName = None,
    model: opt.ModelFile = None,
    arch: opt.Arch = None,
    input_shape: opt.InputShape = None,
    classes: opt.Classes = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    state_dict: opt.StateDict = None,
    config: opt.Config = None,
    effort: opt.EffortLevel = None,
    no_photographs: opt.NoPhotographs = False,
    seed: opt.Seed = None,
    threads: opt.Threads = None,
    gpu: opt.Gpu = False,
    depfile: opt.Depfile = None,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Scan, purify, compress and export a network, and write a checked bundle with its report."""
    reporter = Reporter(as_json=as_json, quiet=quiet)
    spec, code_folder = opt.model_spec(checkpoint, model, arch, input_shape, classes, mean, std)
    options = opt.run_options(seed, gpu, effort) | {"target": target, "jetpack": jetpack}
    options |= opt.runtime_options(runtime) | opt.load_options(state_dict)
    options |= {"purify": {"mode": purify}, "precision": {"format": precision}}
    options |= {"scale": {"tau": tau}, "export": {"opset": opset}, "latency": {"threads": threads}}
    goal = opt.rank_goal(ratio, measure, rank_multiple, speedup, latency_budget_ms, size_budget)
    goal |= {"keep_accuracy": keep_accuracy, "forms": opt.forms_of(forms)} | _overrides(ranks_file)
    options |= {"ranks": goal, "decompose": {"keep": keep or None}} | opt.recovery(no_photographs)
    settings, device = opt.pipeline_settings(config, options, target_file, note=reporter.note)
    drops = max_accuracy_drop, max_expected_drop
    gates = opt.read_gates(policy, fail_on_backdoor, *drops, max_size, min_speedup)
    stages = stage_cache(cache, no_cache, reporter.note)
    read = [*checkpoint_files(checkpoint), model, code_file(spec.architecture, code_folder)]
    read += [config, target_file, policy, ranks_file, latency_table]
    others = [evaluate, sign_key, sign_certificate, stages.folder if stages else None]
    keep_apart([*read, *others], files=[depfile], folder=output)
    inputs = InputFiles(depfile, output)
    inputs.add(*read)
    signer = _signer(sign_key, sign_certificate, output)
    opt.use_threads(threads)
    from edgeclean import pipeline

    note_output(output)
    labelled = opt.labelled_images(evaluate, spec)
    inputs.add(*(labelled.files if labelled else ()))
    with reporter.progress() as progress:
        written = pipeline.compress(
            *(checkpoint, spec, output, settings),
            target=device,
            latency_table=opt.read_table(latency_table),
            policy=gates,
            labelled=labelled,
            code_folder=code_folder,
            progress=progress,
            signer=signer,
            cache=stages,
            alongside=lambda network: inputs.add_external(checkpoint, network),
        )
    _answer(reporter, checkpoint, written)


def _signer(key: Path | None, certificate: Path | None, output: Path) -> Signer | None:
    """What to sign with, tried before the run."""
    if key is None:
        if certificate is not None:
            raise UsageError("--sign-certificate goes with a private key: give --sign-key as well")
        return None
    from edgeclean.bundle.signing import Signer, check_signer

    signer = Signer(private_key=key, certificate=certificate)
    check_signer(signer, output)
    return signer


def _overrides(ranks_file: Path | None) -> dict[str, Any]:
    """The settings that a file of ranks stands for."""
    if ranks_file is None:
        return {}
    from edgeclean.compression.factorisation import ranks_as_json
    from edgeclean.compression.settings import read_rank_file

    listed = read_rank_file(ranks_file)
    return {
        "overrides": {layer: ranks_as_json(ranks) for layer, ranks in listed.ranks.items()} or None,
        "keep": list(listed.keep) or None,
    }


def _answer(reporter: Reporter, checkpoint: Path, written: WrittenCompression) -> None:
    """The bundle that was written, and what was measured of it."""
    opt.note_loading(checkpoint, written.compression.original, reporter.note)
    tables = _summary(written), _checks(written), *_runtimes(written), _files(written)
    reporter.answer(_document(written), *tables)
    if written.compression.scan.structure.findings:
        reporter.note(structure_warning(written.compression.scan.structure))
    for caveat in written.compression.caveats:
        reporter.note(caveat)
    fastest = fastest_line(written.report["runtimes"])
    if fastest is not None:
        reporter.note(fastest)
    for name in written.bundle.file_bytes:
        if name.endswith("/README.md"):  # of a kit for a converter that its vendor alone has
            reporter.note(
                f"what is left to do with the vendor's converter: {written.bundle.path / name}"
            )
    reporter.note(f"report: {written.bundle.path / 'report.html'}")


def _document(written: WrittenCompression) -> dict[str, Any]:
    """The answer in short; the whole report lies in the bundle."""
    report = written.report
    latency = written.compression.latency
    return {
        "bundle": str(written.bundle.path),
        "manifest_sha256": written.bundle.manifest_sha256,
        "verdict": report["scan"]["verdict"],
        "suspects": report["scan"]["suspects"],
        "structure": report["scan"]["structure"],
        "purified": report["purify"]["changed"],
        "size": report["size"],
        "resolution": report["resolution"],
        "parity": report["parity"],
        "precision": report["precision"],
        "latency": {
            "original_p50_ms": latency.original.p50_ms,
            "compressed_p50_ms": latency.compressed.p50_ms,
            "speedup": latency.speedup,
            "runtime": latency.runtime,
            "threads": latency.threads,
        },
        "runtimes": report["runtimes"],
        "evaluation": report["evaluation"],
        "forecast": report["forecast"],
        "gates": report["gates"],
        "seconds": {stage["stage"]: stage["seconds"] for stage in report["stages"]},
        "peak_memory_mib": report["peak_memory_mib"],
        "files": dict(written.bundle.file_bytes),
    }


def _summary(written: WrittenCompression) -> Table:
    from edgeclean.report.report import byte_size, si_number

    size, latency = written.report["size"], written.compression.latency
    table = plain_table("", ">original", ">compressed", ">ratio")
    for title, key, shown in (
        ("parameters", "params", si_number),
        ("MACs", "macs", si_number),
        ("ONNX file", "onnx_bytes", byte_size),
    ):
        before, after = size[key]["original"], size[key]["compressed"]
        table.add_row(*cells(title, shown(before), shown(after), f"{before / after:.2f}x"))
    if written.report["resolution"] is not None:
        own, seen = written.report["network"]["input_shape"][1:], written.report["resolution"]
        shown_sizes = ["x".join(map(str, size)) for size in (own, seen)]
        table.add_row(*cells("pixels that layers see", *shown_sizes, ""))
    milliseconds = [f"{one.p50_ms:.3g} ms" for one in (latency.original, latency.compressed)]
    table.add_row(*cells("latency p50", *milliseconds, f"{latency.speedup:.2f}x"))
    return table


def _checks(written: WrittenCompression) -> Table:
    parity, changed = written.compression.parity, written.report["purify"]["changed"]
    difference = f"{parity.max_relative_difference:.1e}, allowed {parity.tolerance:.0e}"
    table = plain_table("", "")
    table.add_row(*cells("scan of the original", verdict_in_words(written.compression.scan)))
    if written.compression.scan.not_run and written.compression.scan.verdict == "suspected":
        table.add_row(*cells("searches not run", written.compression.scan.not_run))
    structure = written.compression.scan.structure
    for one in structure.findings:
        table.add_row(*cells(f"structure: {one.kind}", one.in_words()))
    if structure.read and not structure.findings:
        table.add_row(*cells("learned layers", layers_in_words(structure)))
    table.add_row(*cells("purification", "changed weights" if changed else "changed nothing"))
    shares = written.report["trigger_success"]
    if shares:
        worst = [max(one[name] for one in shares) for name in ("original", "compressed")]
        table.add_row(*cells("success of its triggers", f"{worst[0]:.0%} -> {worst[1]:.0%}"))
    table.add_row(*cells("parity of ONNX with PyTorch", difference))
    if written.compression.evaluation is not None:
        own = written.compression.evaluation
        accuracy = f"{own.original_accuracy:.2%} -> {own.compressed_accuracy:.2%}"
        table.add_row(*cells(f"accuracy on {own.images} images", accuracy))
    forecasts = written.compression.forecasts
    table.add_row(*cells("forecast of accuracy lost", forecasts.compressed.in_words()))
    if forecasts.probes:
        table.add_row(*cells("ratios tried for it", "; ".join(map(str, forecasts.probes))))
    for gate in written.compression.gates:
        measured, bound = gate.in_numbers
        table.add_row(*cells(gate.gate, f"passed: {measured} {gate.unit}, asked {bound}"))
    lowered = written.compression.lowered
    agreement = lowered.agreement
    close = f"{agreement.top1_agreement:.1%} agree with fp32, {agreement.signal_to_noise_db:.0f} dB"
    kept = f", {len(lowered.kept)} nodes kept in fp32" if lowered.kept else ""
    if lowered.format != "fp32":
        table.add_row(*cells(f"precision {lowered.format}", close + kept))
    return table


def _runtimes(written: WrittenCompression) -> list[Table]:
    """One row for each runtime that was asked for or tried."""
    return runtime_tables(written.report["runtimes"])


def _files(written: WrittenCompression) -> Table:
    from edgeclean.report.report import byte_size

    table = plain_table("file", ">size", title=printable(str(written.bundle.path)))
    pictures: dict[str, list[int]] = {}
    for name, length in written.bundle.file_bytes.items():
        folder, _, file = name.rpartition("/")
        if folder.endswith("/images"):  # to calibrate on: one row for all of them
            pictures.setdefault(f"{folder}/*{file[-4:]}", []).append(length)
        else:
            table.add_row(*cells(name, byte_size(length)))
    for name, lengths in pictures.items():
        table.add_row(*cells(f"{name} ({len(lengths)})", byte_size(sum(lengths))))
    return table
