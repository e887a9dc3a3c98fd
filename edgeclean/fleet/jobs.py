"""What a worker is told to do, and what it answers; both travel between processes and machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeclean.config import PipelineSettings
from edgeclean.devices.targets import Target
from edgeclean.gates import Policy
from edgeclean.networks.state import JsonValue

Kind = Literal["purify", "table", "cell"]
KINDS: tuple[Kind, ...] = ("purify", "table", "cell")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One stage of a fleet, with all that decides its result.

    Attributes:
        kind: ``purify`` loads, scans and purifies a network for all of its cells; ``table``
            measures a latency table; ``cell`` does what is left, and writes the bundle.
        checkpoint: the network's file or folder.
        sha256: the hash that the checkpoint's bytes must have; None for one that nobody could
            take, which the loader refuses.
        model: the model file; None for none.
        code: whether the model file may name code to run.
        beside: further files that loading may read: the architecture's code, weights of ONNX.
        settings: the settings of every stage.
        threads: the processor threads of PyTorch.
        cache: the folder of finished stages.
        target: of a cell, the device.
        policy: of a cell, the gates.
        table: of a cell, the file of a latency table.
        evaluate: of a cell, the labelled images.
        output: of a cell, the bundle's folder.
        kept: the keys of finished stages that it can take up, for an engine whose workers do not
            see the cache.
    """

    kind: Kind
    checkpoint: Path
    sha256: str | None
    model: Path | None
    code: bool
    beside: tuple[Path, ...] = ()
    settings: PipelineSettings
    threads: int
    cache: Path
    target: Target
    policy: Policy
    table: Path | None = None
    evaluate: Path | None = None
    output: Path | None = None
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The answer of a job that went well.

    Attributes:
        facts: what `edgeclean.fleet.work` says of the network or the cell, for ``fleet.json``.
        seconds: the time that the worker took.
        kept: the keys of finished stages that came back with it; the jobs that follow need them.
    """

    facts: dict[str, JsonValue]
    seconds: float
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The answer of a job that was refused, or found a defect: another try would end alike.

    Attributes:
        kind: the name of the error's class, or "defect".
        message: one line.
        exit_code: as `edgeclean compress` would have ended.
        facts: the error's own, such as the gates.
        seconds: the time that the worker took.
    """

    kind: str
    message: str
    exit_code: int
    facts: dict[str, JsonValue] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """No answer: the worker or its machine went; the job may be tried again.

    Attributes:
        reason: in words, as what follows "its process".
        with_its_node: whether its whole machine went: that says little of the job.
    """

    reason: str
    with_its_node: bool = False


Answer = Done | Failed | Lost
