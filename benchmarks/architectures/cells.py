"""One architecture from one input through the command line: each step a process, with its limit.

The processes are forked from this one, which has the libraries loaded, and each calls the command
line's own entry point. A step ends well; or it is refused, by one line, with an exit code that says
so, and before any long stage has begun. Anything else has failed.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NoReturn

import torch
import torch._dynamo
import torch.export

from benchmarks.architectures.planting import MEAN, STD, normalised
from benchmarks.architectures.prepare import FACTS, GRAPH, WEIGHTS, is_prepared, prepare, rates
from benchmarks.architectures.table import TABLE, Architecture
from benchmarks.environment import ROOT
from edgeclean import pipeline  # noqa: F401 - loaded once, here, and not in every fork
from edgeclean.cli import main
from edgeclean.networks.state import JsonValue
from exporters.session import OnnxSession

Cell = dict[str, JsonValue]
INPUTS = ("pytorch", "onnx")
DEPTHS = ("inspect", "compress")
CONFIG = Path(__file__).with_name("tiny.toml")
KEPT = ROOT / ".bench" / "architectures"
RATIO, SEED = "1.1", 0
PROCESSOR_SECONDS, WALL_SECONDS = 300, 3000
REFUSALS = {2, 3, 6}
STAGE = re.compile(r"^\[ *\d+ %\] (.+?) \.\.\.", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one process did.

    Attributes:
        exit_code: its exit code, or minus the signal that ended it.
        line: the last error line, or of a traceback the last line; empty where it ended well.
        lines: how many error lines there were.
        stage: the last long stage that was begun, or empty.
        processor_s: user and system time, with its children's.
    """

    exit_code: int
    line: str
    lines: int
    stage: str
    processor_s: float

    @property
    def outcome(self) -> str:
        """Return passed, refused, refused late, or failed."""
        if self.exit_code == 0:
            return "passed"
        if self.exit_code not in REFUSALS or self.lines != 1:
            return "failed"
        return "refused late" if self.stage else "refused"


def run_cell(name: str, source: str, depth: str, kept: Path = KEPT) -> Cell:
    """Prepare the inputs where they are missing, run the steps, and return what was found."""
    architecture, folder = TABLE[name], kept / name
    cell: Cell = {
        "name": name,
        "input": source,
        "depth": depth,
        "input_shape": list(architecture.input_shape),
        "classes": architecture.classes,
    }
    if not is_prepared(architecture, folder):
        _, made = run_forked(lambda: prepare(architecture, folder))
        if made.exit_code:
            return cell | {"outcome": "failed", "steps": {"prepare": asdict(made)}}
    cell |= json.loads((folder / FACTS).read_text())
    del cell["made_by"]
    if source == "onnx" and cell["exporter"] is None:
        return cell | {"outcome": "not exported", "steps": {}}
    words = words_for(architecture, source, folder)
    steps: dict[str, Step] = {}
    _, steps["inspect"] = run_step(["inspect", *words, "--json"])
    if depth == "compress":
        output = folder / source
        shutil.rmtree(output, ignore_errors=True)
        said, steps["compress"] = run_step(
            ["compress", *words, "--config", str(CONFIG), "--no-cache", "--json", "-o", str(output)]
        )
        if steps["compress"].exit_code == 0:
            cell |= _facts_of(architecture, json.loads(said), output / "model.onnx")
    outcomes = [one.outcome for one in steps.values()]
    return cell | {
        "outcome": "failed" if "failed" in outcomes else outcomes[-1],
        "steps": {step: asdict(one) for step, one in steps.items()},
    }


def words_for(architecture: Architecture, source: str, folder: Path) -> list[str]:
    """Return the words that inspect and compress share, whichever input the network comes from."""
    channels = architecture.input_shape[0]
    file, arch = (WEIGHTS, architecture.arch) if source == "pytorch" else (GRAPH, "onnx")
    return [
        str(folder / file),
        *("--arch", arch),
        *("--input-shape", "x".join(map(str, architecture.input_shape))),
        *("--classes", str(architecture.classes)),
        *("--mean", ",".join([str(MEAN)] * channels)),
        *("--std", ",".join([str(STD)] * channels)),
        *("--ratio", RATIO),
        *("--seed", str(SEED)),
        *("--threads", "1"),
    ]


def _order(target: int | None) -> int:
    return -1 if target is None else target


def _facts_of(architecture: Architecture, answer: Cell, model: Path) -> Cell:
    """Return what the command answered, and what the bundle's network does to the test images."""
    cell: Cell = {
        "verdict": answer["verdict"],
        # None is all classes: each image to the class after its own.
        "suspects": sorted({one["target"] for one in answer["suspects"]}, key=_order),
        "macs_after": answer["size"]["macs"]["compressed"],
        "macs_ratio": answer["size"]["macs"]["original"] / answer["size"]["macs"]["compressed"],
        "parity": answer["parity"]["max_relative_difference"],
    }
    if not architecture.trained:
        return cell
    session = OnnxSession(model.read_bytes())
    after = rates(
        lambda pixels: torch.from_numpy(session.predict(normalised(pixels).numpy())), architecture
    )
    return cell | {f"{key}_after": percent for key, percent in after.items()}


def run_step(words: list[str]) -> tuple[str, Step]:
    """Run a command line in a process of its own; return what it wrote to stdout, and the step."""

    def command() -> None:
        sys.argv = ["edgeclean", *words]
        main()

    return run_forked(command)


def run_forked(work: Callable[[], None]) -> tuple[str, Step]:
    """Run a function in a fork of this process, which has the libraries loaded, with limits."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            _be_child(work, out.fileno(), err.fileno())
        _, status, spent = os.wait4(child, 0)  # what its own children used is in it
        code = os.waitstatus_to_exitcode(status)
        said, complained = (_read(one) for one in (out, err))
    seconds = round(spent.ru_utime + spent.ru_stime, 1)
    if code < 0:
        complained += (
            f"\nerror: ended by {signal.Signals(-code).name} after {seconds} s of processor"
        )
    return said, step_of(code, complained, seconds)


def _be_child(work: Callable[[], None], out: int, err: int) -> NoReturn:
    """Do the work, and end without a return to the caller's code."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS + 10))
        signal.alarm(WALL_SECONDS)
        os.dup2(out, 1)
        os.dup2(err, 2)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - it is the step's result
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def step_of(exit_code: int, stderr: str, seconds: float) -> Step:
    """Read what a process said on stderr."""
    errors = [line for line in stderr.splitlines() if line.lower().startswith("error:")]
    if "Traceback (most recent call last)" in stderr or (exit_code and not errors):
        errors = [*errors, *stderr.strip().splitlines()[-1:]]
        count = max(2, len(errors))
    else:
        count = len(errors)
    stages = STAGE.findall(stderr)
    return Step(
        exit_code=exit_code,
        line=_without_paths(errors[-1])[:600] if errors and exit_code else "",
        lines=count if exit_code else 0,
        stage=stages[-1] if stages and exit_code else "",
        processor_s=seconds,
    )


def _without_paths(line: str) -> str:
    """Return a line with paths as seen from the repository or the installed packages."""
    return re.sub(r"[^\s'\"]*/site-packages/", "", line.replace(f"{ROOT}/", ""))
