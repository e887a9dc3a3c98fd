"""The gates of a policy, each judged by what a run measured.

A verdict says what was asked and what was measured; `refuse_failed` turns failed ones into an
error, with the exit code of the first. Gates run on results only: nothing here is told to a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from edgeclean.errors import AccuracyGateError, BackdoorSuspectedError, BudgetError, EdgecleanError
from edgeclean.gates.evaluation import Evaluation
from edgeclean.gates.policy import Policy
from edgeclean.runtime.latency import LatencyReport
from edgeclean.scan import ScanReport

GateName = Literal["fail-on-backdoor", "max-accuracy-drop", "max-size", "min-speedup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """One gate that was asked.

    Attributes:
        gate: the name of the option and of the key in a policy file.
        asked: the bound, in ``unit``.
        measured: in ``unit``; NaN never passes.
        unit: "suspicions", "percentage points", "bytes" or "times".
        passed: whether the bound is kept.
        detail: what stands behind the number, in words.
    """

    gate: GateName
    asked: int | float
    measured: int | float
    unit: str
    passed: bool
    detail: str


def judge_scan(policy: Policy, found: ScanReport) -> tuple[GateVerdict, ...]:
    """The gate on the scan, which can be judged before the work that follows."""
    if not policy.fail_on_backdoor:
        return ()
    suspected = found.suspicions
    searches = ", ".join(search.name for search in found.searches)
    return (
        GateVerdict(
            gate="fail-on-backdoor",
            asked=0,
            measured=len(suspected),
            unit="suspicions",
            passed=found.verdict != "suspected",
            detail=", ".join(suspected) if suspected else f"searched: {searches}",
        ),
    )


def judge_result(
    policy: Policy, evaluation: Evaluation | None, onnx_bytes: int, latency: LatencyReport
) -> tuple[GateVerdict, ...]:
    """The gates on what came out: accuracy, size, speed, in this order.

    Args:
        policy: what is asked.
        evaluation: of both networks on the user's images; needed if accuracy is asked for.
        onnx_bytes: the size of ``model.onnx``.
        latency: of both networks; the gain in the median is judged.
    """
    verdicts = []
    if policy.max_accuracy_drop is not None and evaluation is not None:
        verdicts.append(_judge_accuracy(policy.max_accuracy_drop, evaluation))
    if policy.max_size is not None:
        verdicts.append(
            GateVerdict(
                gate="max-size",
                asked=policy.max_size_bytes,
                measured=onnx_bytes,
                unit="bytes",
                passed=onnx_bytes <= policy.max_size_bytes,
                detail="model.onnx",
            )
        )
    if policy.min_speedup is not None:
        verdicts.append(_judge_speed(policy.min_speedup, latency))
    return tuple(verdicts)


def refuse_failed(verdicts: Sequence[GateVerdict]) -> None:
    """Raise the error of the first gate that failed; its line names all that did.

    Raises:
        BackdoorSuspectedError: the scan's gate failed.
        AccuracyGateError: accuracy fell further than allowed.
        BudgetError: the file is too large or the gain in speed too small.
    """
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return
    told = "; ".join(_in_words(verdict) for verdict in failed)
    raise _ERRORS[failed[0].gate](
        f"{told}; no bundle was written, and one that was there is unchanged",
        gates=[asdict(verdict) for verdict in verdicts],
    )


_ERRORS: dict[GateName, type[EdgecleanError]] = {
    "fail-on-backdoor": BackdoorSuspectedError,
    "max-accuracy-drop": AccuracyGateError,
    "max-size": BudgetError,
    "min-speedup": BudgetError,
}


def _judge_accuracy(most: float, evaluation: Evaluation) -> GateVerdict:
    return GateVerdict(
        gate="max-accuracy-drop",
        asked=most,
        measured=evaluation.drop_points,
        unit="percentage points",
        passed=evaluation.drop_points <= most,
        detail=f"{evaluation.original_accuracy:.2%} to {evaluation.compressed_accuracy:.2%} on "
        f"{evaluation.images} images, standard error {evaluation.drop_standard_error_points:.2f}",
    )


def _judge_speed(least: float, latency: LatencyReport) -> GateVerdict:
    steady = "" if latency.steady else "; the machine was not steady"
    return GateVerdict(
        gate="min-speedup",
        asked=least,
        measured=latency.speedup,
        unit="times",
        passed=latency.speedup >= least,
        detail=f"{latency.runtime}, {latency.threads} threads of this machine; 95 % interval "
        f"{latency.speedup_low:.2f} to {latency.speedup_high:.2f}{steady}",
    )


def _in_words(verdict: GateVerdict) -> str:
    bound = "at least" if verdict.gate == "min-speedup" else "at most"
    return (
        f"{verdict.gate}: {verdict.measured:.12g} {verdict.unit} ({verdict.detail}), and {bound} "
        f"{verdict.asked:.12g} was asked"
    )
