"""What a worker does: one stage, with the same functions that `edgeclean compress` calls.

What two stages of a network share they share through the cache: the first keeps it under a hash of
all that decides it, the second takes it up. So a cell is `pipeline.compress` and nothing else, and
its bytes are those of `edgeclean compress`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from edgeclean import pipeline
from edgeclean.backdoor.findings import ScanReport
from edgeclean.compression.latency_table import read_latency_table
from edgeclean.errors import EdgecleanError, InputRejectedError, UsageError
from edgeclean.files.text import one_line, shown, without_folder
from edgeclean.fleet.jobs import Answer, Done, Failed, Job, Kind, Lost
from edgeclean.fleet.rows import gates_in_short
from edgeclean.gates import Policy
from edgeclean.images.labelled import read_labelled_images
from edgeclean.load.architectures.named_code import NO_CODE
from edgeclean.load.model_file import spec_from_options
from edgeclean.measure.machine_table import table_of_this_machine
from edgeclean.networks.compute import placed
from edgeclean.networks.state import JsonValue, LoadedNetwork, ModelSpec
from edgeclean.report import figures
from edgeclean.report.page import trigger_picture
from edgeclean.runner import Cache, Runner

TAKEN_UP = ": taken up from an earlier run"
PICTURE_SIDE = 32  # of a trigger on the page of ten thousand rows


def run_job(job: Job) -> Answer:
    """Do a job; an error is an answer too, and so is a defect: neither ends the worker."""
    start = time.perf_counter()
    try:
        torch.set_num_threads(job.threads)  # a worker is this program's own
        facts = _WORK[job.kind](job)
    except EdgecleanError as error:
        return Failed(
            kind=type(error).__name__,
            message=one_line(str(error)),
            exit_code=error.exit_code,
            facts=error.facts,
            seconds=_since(start),
        )
    except MemoryError:
        return Lost(reason="found no memory left")
    except Exception as defect:  # noqa: BLE001 - of one cell; the others go on
        message = one_line(f"a defect of edgeclean: {type(defect).__name__}: {defect}")
        return Failed(kind="defect", message=message, exit_code=1, seconds=_since(start))
    return Done(facts=facts, seconds=_since(start))


def _purify(job: Job) -> dict[str, JsonValue]:
    """Scan and purify for all cells of a network; no gate stops here, each is a cell's own."""
    taken: list[str] = []
    run = Runner(_cache(job, taken))
    network, _ = _opened(job, run)
    found, _, _ = pipeline.scan_and_purify(network, job.settings, Policy(), run)
    first = network.history[0]
    return {
        "architecture": without_folder(network.spec.architecture),
        "source_sha256": network.source_sha256,
        "params": first.params,
        "macs": first.macs,
        "verdict": found.verdict,
        "suspicions": list(found.suspicions),
        "trigger": _picture(found),
        "taken_up": taken,
    }


def _table(job: Job) -> dict[str, JsonValue]:
    """Measure what the layers' forms take here; the rows stay in the cache."""
    run = Runner(_cache(job, []))
    network, _ = _opened(job, run)
    settings = job.settings
    timed = network, settings.ranks, settings.latency
    table = run("table", table_of_this_machine, *timed, kept=_cache(job, []).store)
    return {"device": table.device, "runtime": table.runtime, "blocks": len(table.blocks)}


def _cell(job: Job) -> dict[str, JsonValue]:
    if job.output is None:
        raise ValueError("a cell needs the folder of its bundle")
    taken: list[str] = []
    spec, code_folder = _spec(job)
    written = pipeline.compress(
        *(job.checkpoint, spec, job.output, job.settings),
        target=job.target,
        latency_table=None if job.table is None else read_latency_table(job.table),
        policy=job.policy,
        labelled=None if job.evaluate is None else read_labelled_images(job.evaluate, spec),
        code_folder=code_folder,
        cache=_cache(job, taken),
        alongside=_pinned(job),
    )
    report, notes = written.report, written.compression.original.history[0].notes
    latency = written.compression.latency
    return {
        "manifest_sha256": written.bundle.manifest_sha256,
        "external_sha256": dict(notes.get("external_sha256", {})),
        "purified": report["purify"]["changed"],
        "size": report["size"],
        "latency": {
            "original_p50_ms": latency.original.p50_ms,
            "compressed_p50_ms": latency.compressed.p50_ms,
            "speedup": latency.speedup,
        },
        "evaluation": _accuracy(report["evaluation"]),
        "gates": gates_in_short(report["gates"]),
        "taken_up": taken,
    }


_WORK: dict[Kind, Callable[[Job], dict[str, JsonValue]]] = {
    "purify": _purify,
    "table": _table,
    "cell": _cell,
}


def _opened(job: Job, run: Runner) -> tuple[LoadedNetwork, bytes]:
    """Load the network as `pipeline.compress` does, on the device that the stages run on."""
    spec, code_folder = _spec(job)
    network, model = pipeline.open_network(job.checkpoint, spec, job.settings, code_folder, run)
    _pinned(job)(network)
    return placed(network, job.settings.compute), model


def _spec(job: Job) -> tuple[ModelSpec, Path | None]:
    try:
        spec = spec_from_options(checkpoint=job.checkpoint, model_file=job.model)
    except UsageError:
        if job.model is not None:
            raise
        raise UsageError(
            f"{job.checkpoint} does not say all of its architecture, input shape, classes, mean "
            f"and std; put a model file {job.checkpoint.stem}.toml beside it, or name one in the "
            "catalogue (model = ...)"
        ) from None
    library = spec.architecture.partition(":")[0]
    if not job.code and ":" in spec.architecture and library not in NO_CODE:
        raise InputRejectedError(
            f"{job.model} names code to run ({shown(spec.architecture)}), and was taken because it "
            "lies beside its checkpoint; name it in the catalogue (model = ...) if you trust it"
        )
    return spec, None if job.model is None else job.model.parent


def _pinned(job: Job) -> Callable[[LoadedNetwork], AbstractContextManager[None]]:
    """What was hashed is what is used: the file may have been exchanged since."""

    def check(network: LoadedNetwork) -> AbstractContextManager[None]:
        if network.source_sha256 != job.sha256:
            raise InputRejectedError(
                f"{job.checkpoint} was changed while the fleet ran: its hash was {job.sha256} and "
                f"is {network.source_sha256}; run the same command again"
            )
        return nullcontext()

    return check


def _cache(job: Job, taken: list[str]) -> Cache:
    """The cache of the job; what is taken up from it is noted, and other warnings are not."""

    def note(line: str) -> None:
        if line.endswith(TAKEN_UP):
            taken.append(line.removesuffix(TAKEN_UP))

    return Cache(folder=job.cache, notify=note)


def _picture(found: ScanReport) -> str | None:
    """The first suspect's trigger as a small picture; None where there is none."""
    if not found.suspects:
        return None
    return figures.png_uri(figures.at_most(trigger_picture(found.suspects[0]), PICTURE_SIDE))


def _accuracy(evaluation: Mapping[str, Any] | None) -> dict[str, JsonValue] | None:
    if evaluation is None:
        return None
    return {
        name: evaluation[name] for name in ("images", "original_accuracy", "compressed_accuracy")
    }


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)
