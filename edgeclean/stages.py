"""Every stage between the loaded network and the bundle, in order.

The guided way: purify what the scan suspects, then decompose, choose ranks, truncate, and recover
accuracy from the purified network. The deck's way: clamp and truncate the network as it came, and
tune it on labelled images that were synthesised through what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ParamSpec, TypeVar

from edgeclean.compress.clamp import choose_tau, scale
from edgeclean.compress.decompose import decompose
from edgeclean.compress.goals import FileSize
from edgeclean.compress.latency_table import LatencyTable
from edgeclean.compress.plan import choose_ranks
from edgeclean.compress.truncate import truncate
from edgeclean.config import PipelineSettings
from edgeclean.gates.evaluation import Evaluation
from edgeclean.gates.policy import Policy
from edgeclean.gates.promise import refuse_larger, refuse_slower
from edgeclean.gates.verdicts import GateVerdict, judge_scan, refuse_failed
from edgeclean.networks.cost import count_params
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.progress import Progress, silent
from edgeclean.purification.purify import purify
from edgeclean.recovery.finetune import finetune
from edgeclean.reports.report import same_weights
from edgeclean.reports.stopwatch import Stopwatch
from edgeclean.resume.stages import Kept, keep_nothing
from edgeclean.resume.tables import is_of_this_machine
from edgeclean.runtime.latency import LatencyReport, measure_pair
from edgeclean.scan import ScanReport, scan
from edgeclean.states import (
    FinetunedNetwork,
    LoadedNetwork,
    PurifiedNetwork,
    ScaledNetwork,
    SyntheticImages,
    TruncatedNetwork,
)
from edgeclean.synthesis.synthesize import joined, synthesize
from exporters.onnx_exporter import export_onnx
from exporters.parity import ParityRecord, check_parity
from exporters.precision import LoweredModel, lower_precision

NO_GATES = Policy()
BYTES_PER_PARAM = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
NODE_BYTES = 1000  # of two further convolutions in an ONNX graph, names included, at the most
LOOK_RUNS = 40  # of a look at the truncated network before the minutes of fine-tuning
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run made.

    Attributes:
        original: the network as it came.
        purified: the teacher of what followed.
        scaled: decomposed and clamped, not yet truncated.
        compressed: what was exported.
        images: that the compressed network was tuned on.
        scan: of the original.
        model: the ONNX file, in its final precision.
        original_model: the original network's, to compare with.
        parity: of the ONNX file in float32 with the compressed network.
        lowered: how close the file in its final precision stays to the one in float32.
        latency: of both ONNX files, measured in turns.
        evaluation: of both on the user's images; None if none were given.
        gates: the verdict on each gate that was asked; all passed.
    """

    original: LoadedNetwork
    purified: PurifiedNetwork
    scaled: ScaledNetwork
    compressed: FinetunedNetwork
    images: SyntheticImages
    scan: ScanReport
    model: bytes
    original_model: bytes
    parity: ParityRecord
    lowered: LoweredModel
    latency: LatencyReport
    evaluation: Evaluation | None = None
    gates: tuple[GateVerdict, ...] = ()


def run_stages(  # noqa: PLR0913 - what a run is of, and what it tells
    original: LoadedNetwork,
    settings: PipelineSettings,
    *,
    table: LatencyTable | None = None,
    policy: Policy = NO_GATES,
    kept: Kept = keep_nothing,
    timed: Stopwatch | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Every stage between the loaded network and the bundle; nothing but the cache is written.

    Raises:
        BudgetError: with a latency table of this machine, the network is slower than the original;
            or the file is above the size budget.
    """
    clock = timed or Stopwatch(progress)
    run = _Run(original, settings, kept, clock, progress, table)
    images = run.synthesized(original, settings.seed)
    found = run(scan, settings.scan)(
        original, images, settings.scan, seed=settings.seed, progress=progress
    )
    refuse_failed(judge_scan(policy, found))  # now: what follows takes minutes
    heal = run(purify, settings.purify, like=original)
    purified = heal(original, images, found, settings.purify, seed=settings.seed, progress=progress)
    way = run.by_the_deck if settings.purify.mode == "deck" else run.guided
    scaled, truncated, images = way(purified, images)
    teach = run(finetune, settings.truncate, settings.finetune, like=truncated)
    compressed = teach(
        truncated, purified, images, settings.finetune, seed=settings.seed, progress=progress
    )
    export = clock(export_onnx, "Exporting")
    model, original_model = export(compressed, settings.export), export(original, settings.export)
    parity = clock(check_parity, "Checking parity")(
        compressed, model, images.pixels, settings.parity
    )
    lower = clock(lower_precision, "Lowering the precision")
    lowered = lower(model, compressed.spec, images.pixels, settings.precision, progress=progress)
    refuse_larger(settings.ranks.size_budget, len(lowered.model))
    measure = clock(measure_pair, "Measuring latency")
    latency = measure(original_model, lowered.model, settings.latency)
    if table is not None and is_of_this_machine(table):
        refuse_slower(latency)
    return Outcome(
        original=original,
        purified=purified,
        scaled=scaled,
        compressed=compressed,
        images=images,
        scan=found,
        model=lowered.model,
        original_model=original_model,
        parity=parity,
        lowered=lowered,
        latency=latency,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """What every stage of one run is given besides its own input."""

    original: LoadedNetwork
    settings: PipelineSettings
    kept: Kept
    timed: Stopwatch
    progress: Progress
    table: LatencyTable | None

    def __call__(
        self,
        stage: Callable[P, T],
        *settings: object,
        like: LoadedNetwork | TruncatedNetwork | None = None,
    ) -> Callable[P, T]:
        """The stage, timed, or its kept result; ``settings`` and ``like`` as `Kept` says."""
        return self.timed(self.kept(stage, *settings, like=like))

    def guided(
        self, purified: PurifiedNetwork, images: SyntheticImages
    ) -> tuple[ScaledNetwork, TruncatedNetwork, SyntheticImages]:
        """The purified network truncated, and the images to tune it on."""
        settings, progress = self.settings, self.progress
        if not same_weights(self.original.module, purified.module):
            # Images of a backdoored network may carry its trigger; the purified teacher's answers
            # to them do not, and its own images add what the first ones miss.
            images = joined(images, self.synthesized(purified, settings.seed + 1))
        decomposed = self.timed(decompose)(purified, settings.decompose, progress=progress)
        scaled = self.timed(scale)(decomposed, settings.scale, progress=progress)
        return scaled, self.truncated(scaled, images), images

    def by_the_deck(
        self, purified: PurifiedNetwork, images: SyntheticImages
    ) -> tuple[ScaledNetwork, TruncatedNetwork, SyntheticImages]:
        """Clamped and truncated first; then images whose class loss the constrained one takes."""
        settings, progress = self.settings, self.progress
        decomposed = self.timed(decompose)(purified, settings.decompose, progress=progress)
        clamp = settings.scale
        if clamp.tau is None:
            clamp = self.timed(choose_tau)(
                decomposed, images.pixels[:256], clamp, progress=progress
            )
        scaled = self.timed(scale)(decomposed, clamp, progress=progress)
        truncated = self.truncated(scaled, images)
        draw = self(synthesize, settings.synthesize)
        labelled = draw(
            purified,
            settings.synthesize,
            seed=settings.seed + 1,
            classifier=truncated,
            progress=progress,
        )
        return scaled, truncated, labelled

    def synthesized(self, network: LoadedNetwork | PurifiedNetwork, seed: int) -> SyntheticImages:
        """Of the network as it came, or, for recovery, of the purified one."""
        chosen = self.settings.synthesize
        if network is not self.original:
            chosen = chosen.recovery()
        draw = self(synthesize, chosen)
        return draw(network, chosen, seed=seed, progress=self.progress)

    def truncated(self, scaled: ScaledNetwork, images: SyntheticImages) -> TruncatedNetwork:
        """Ranks chosen on the images, and the network cut to them."""
        settings, progress = self.settings, self.progress
        # The two cheap stages before are run again; their settings decide the plan all the same.
        facts = [] if self.table is None else [self.table.facts()]
        decided_by = (settings.decompose, settings.scale, settings.ranks, settings.precision)
        choose = self(choose_ranks, *decided_by, *facts)
        plan = choose(
            scaled,
            settings.ranks,
            images=images,
            table=self.table,
            file=self._file_size(),
            progress=progress,
        )
        cut = self.timed(truncate)(scaled, plan, settings.truncate, progress=progress)
        if self.table is not None and is_of_this_machine(self.table):
            look = replace(settings.latency, runs=min(LOOK_RUNS, settings.latency.runs))
            original, model = (export_onnx(one, settings.export) for one in (self.original, cut))
            refuse_slower(measure_pair(original, model, look))
        return cut

    def _file_size(self) -> FileSize | None:
        """What a size budget needs to know of the file; None where none is asked."""
        if self.settings.ranks.size_budget is None:
            return None
        model = export_onnx(self.original, self.settings.export)
        traced = trace_layers(self.original.module, self.original.spec.input_shape)
        return FileSize(
            bytes_per_param=BYTES_PER_PARAM[self.settings.precision.format],
            overhead_bytes=max(0, len(model) - 4 * count_params(self.original.module))
            + NODE_BYTES * len(conv_shapes(traced)),
        )
