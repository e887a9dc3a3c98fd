"""One architecture from one input through the command line: each step a process, with its limit.

A step either ends well, or is refused: by one line, with an exit code that says so, and before any
long stage has begun. Anything else has failed.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.environment import ROOT
from edgeclean.networks.state import JsonValue

Cell = dict[str, JsonValue]
INPUTS = ("pytorch", "onnx")
DEPTHS = ("inspect", "compress")
CONFIG = Path(__file__).with_name("tiny.toml")
KEPT = ROOT / ".bench" / "architectures"
RATIO, SEED = "1.1", 0
PROCESSOR_SECONDS, WALL_SECONDS = 300, 3000
REFUSALS = {2, 3, 6}
ENDED_BY_US = 124
STAGE = re.compile(r"^\[ *\d+ %\] (.+?) \.\.\.", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one process did.

    Attributes:
        exit_code: its exit code; 124 where it ran into its limit.
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
    from benchmarks.architectures.prepare import FACTS
    from benchmarks.architectures.table import TABLE

    architecture, folder = TABLE[name], kept / name
    cell: Cell = {
        "name": name,
        "input": source,
        "depth": depth,
        "input_shape": list(architecture.input_shape),
        "classes": architecture.classes,
    }
    if not (folder / FACTS).exists():
        _, made = run_step(["benchmarks.architectures.prepare", str(kept), name])
        if made.exit_code:
            return cell | {"outcome": "failed", "steps": {"prepare": asdict(made)}}
    cell |= json.loads((folder / FACTS).read_text())
    if source == "onnx" and cell["exporter"] is None:
        return cell | {"outcome": "not exported", "steps": {}}
    words = words_for(name, source, folder)
    steps: dict[str, Step] = {}
    _, steps["inspect"] = run_step(
        ["edgeclean", "inspect", *words, "--ratio", RATIO, "--json", "--seed", str(SEED)]
    )
    if depth == "compress":
        cell |= _compress(words, folder / source, steps, name)
    last = steps[depth]
    outcomes = [one.outcome for one in steps.values()]
    return cell | {
        "outcome": "failed" if "failed" in outcomes else last.outcome,
        "steps": {step: asdict(one) for step, one in steps.items()},
    }


def words_for(name: str, source: str, folder: Path) -> list[str]:
    """Return the words that name the network on a command line, whichever input it comes from."""
    from benchmarks.architectures.planting import MEAN, STD
    from benchmarks.architectures.prepare import GRAPH, WEIGHTS
    from benchmarks.architectures.table import TABLE

    architecture = TABLE[name]
    channels = architecture.input_shape[0]
    file, arch = (WEIGHTS, architecture.arch) if source == "pytorch" else (GRAPH, "onnx")
    return [
        str(folder / file),
        *("--arch", arch),
        *("--input-shape", "x".join(map(str, architecture.input_shape))),
        *("--classes", str(architecture.classes)),
        *("--mean", ",".join([str(MEAN)] * channels)),
        *("--std", ",".join([str(STD)] * channels)),
        *("--threads", "1"),
    ]


def _compress(words: list[str], output: Path, steps: dict[str, Step], name: str) -> Cell:
    said, step = run_step(
        [
            *("edgeclean", "compress", *words, "--ratio", RATIO, "--config", str(CONFIG)),
            *("--seed", str(SEED), "--no-cache", "--json", "-o", str(output)),
        ]
    )
    steps["compress"] = step
    if step.exit_code:
        return {}
    answer = json.loads(said)
    return {
        "verdict": answer["verdict"],
        "suspects": [one["target"] for one in answer["suspects"]],
        "macs_after": answer["size"]["macs"]["compressed"],
        "parity": answer["parity"]["max_relative_difference"],
        **_rates_after(name, output / "model.onnx"),
    }


def _rates_after(name: str, model: Path) -> Cell:
    """Measure what the bundle's network does to the test images, where it was trained at all."""
    import torch

    from benchmarks.architectures.planting import normalised
    from benchmarks.architectures.prepare import rates
    from benchmarks.architectures.table import TABLE
    from exporters.session import OnnxSession

    if not TABLE[name].trained:
        return {}
    session = OnnxSession(model.read_bytes())

    def function(pixels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.predict(normalised(pixels).numpy()))

    return {f"{key}_after": percent for key, percent in rates(function, TABLE[name]).items()}


def run_step(words: list[str]) -> tuple[str, Step]:
    """Run a module as a process with a limit; return what it wrote to stdout, and the step."""
    before = _spent()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        ended = subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=WALL_SECONDS,
            preexec_fn=_limit,
        )
    except subprocess.TimeoutExpired:
        return "", _ended_by_us(f"over {WALL_SECONDS} s", _spent() - before)
    seconds = round(_spent() - before, 1)
    if ended.returncode < 0 and seconds >= PROCESSOR_SECONDS:
        return "", _ended_by_us(f"over {PROCESSOR_SECONDS} s of processor", seconds)
    return ended.stdout, step_of(ended.returncode, ended.stderr, seconds)


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
        line=errors[-1][:600] if errors and exit_code else "",
        lines=count if exit_code else 0,
        stage=stages[-1] if stages and exit_code else "",
        processor_s=seconds,
    )


def _ended_by_us(why: str, seconds: float) -> Step:
    return Step(exit_code=ENDED_BY_US, line=why, lines=2, stage="", processor_s=round(seconds, 1))


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS + 10))


def _spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime
