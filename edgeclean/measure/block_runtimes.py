"""Time the small networks of a latency table in another runtime, in confined processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeclean.child.parcel import Parcel, untrusted_answer
from edgeclean.environment import describe_environment
from edgeclean.errors import ToolchainError
from exporters.confined import run_confined
from exporters.confined_runtime import HeldSettings, input_sides
from exporters.protocol import confined_exporter

ROUNDS = "edgeclean.measure.block_turns:rounds_task"


class ConfinedBackend:
    """A runtime of `exporters` on this machine's CPU, in float32.

    Attributes:
        device: the processor's name.
        runtime: the runtime's name and version.
    """

    def __init__(self, name: str, *, threads: int, batch: int) -> None:
        """Find the runtime.

        Raises:
            ToolchainError: it is not installed.
            UsageError: it is unknown, or takes the ONNX file as it is.
        """
        self._exporter = confined_exporter(name, HeldSettings(threads=threads))
        self._exporter.require()
        self.device = describe_environment().processor
        self.runtime = f"{self._exporter.title}, CPU"
        self.batch = batch

    def rounds(self, models: Sequence[bytes], rounds: int, seconds: float) -> NDArray[np.float64]:
        """Return milliseconds [rounds, models] of ONNX networks in turns, in one process.

        Args:
            models: the networks, each of a fixed batch, with logits [n, classes] as output.
            rounds: the most rounds.
            seconds: after which no round begins, once 5 were made.

        Raises:
            InputRejectedError: the runtime does not take one of them.
            ToolchainError: the runtime crashed.
        """
        exporter = self._exporter
        prepared = [exporter.prepared(model) for model in models]
        shapes = [[side or self.batch for side in input_sides(model)] for model in prepared]
        facts = {**exporter.facts(), "files": list(exporter.files), "shapes": shapes}
        given = Parcel(
            facts={**facts, "rounds": rounds, "seconds": seconds},
            files={f"{number}.onnx": model for number, model in enumerate(prepared)},
        )
        doing = f"{exporter.title}: timing layers"
        answer = run_confined(ROUNDS, given, doing, exporter.limits)
        with untrusted_answer(ToolchainError(f"{doing} answered nonsense")):
            found = np.frombuffer(answer.files["latencies_ms"], np.float64)
            latencies = found.reshape(-1, len(models))
            usable = np.isfinite(latencies) & (latencies > 0)
            if not (1 <= len(latencies) <= rounds and usable.all()):
                raise ValueError(latencies.shape)
        return latencies
