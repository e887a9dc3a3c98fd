"""The gates on what a run made: those of a policy, and those of the asked ranks.

A policy comes from ``policy.toml`` or from options::

    fail-on-backdoor = true
    max-accuracy-drop = 1.5      # percentage points, on the images of --evaluate
    max-expected-drop = 2.0      # percentage points, of the forecast's expected loss
    min-speedup = 1.2            # of the median latency on the machine that builds
    max-size = "2 MiB"           # of model.onnx

A policy is no part of the settings, and no stage has it: the same network comes out with it or
without it, or none. A verdict holds the bound that was asked and the number that was measured;
`refuse_failed` turns failed ones into an error, with the exit code of the first.

The goal of the ranks is a gate as well: the compressed network is never slower (`refuse_slower`)
and never larger (`refuse_larger`) than asked. A plan by a latency table adds up the times of single
layers; the whole network is measured on the same device all the same, and one that is slower there
is refused, whatever its plan.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from edgeclean.backdoor.findings import ScanReport
from edgeclean.compression.latency_table import LatencyTable
from edgeclean.config import overlay, read_config, settings_from
from edgeclean.errors import (
    AccuracyGateError,
    BackdoorSuspectedError,
    BudgetError,
    EdgecleanError,
    UsageError,
)
from edgeclean.files.text import counted, shown
from edgeclean.measure.accuracy import Evaluation
from edgeclean.measure.forecast import Forecast
from edgeclean.measure.latency import LatencyReport
from edgeclean.measure.machine_table import is_of_runtime, is_of_this_machine
from edgeclean.measure.runtimes import Runtimes
from edgeclean.settings import Settings, setting

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(B|kB|MB|GB|KiB|MiB|GiB)?", re.IGNORECASE)
_UNITS = {
    **{"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30},
}
NOTHING_WRITTEN = "no bundle was written, and one that was there is unchanged"
GateName = Literal[
    "fail-on-backdoor", "max-accuracy-drop", "max-expected-drop", "max-size", "min-speedup"
]
_ERRORS: dict[GateName, type[EdgecleanError]] = {
    "fail-on-backdoor": BackdoorSuspectedError,
    "max-accuracy-drop": AccuracyGateError,
    "max-expected-drop": AccuracyGateError,
    "max-size": BudgetError,
    "min-speedup": BudgetError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Settings):
    """The gates of a run; None for one that is not asked.

    Attributes:
        fail_on_backdoor: refuse a network that the scan suspects.
        max_accuracy_drop: percentage points that the compressed network may lose to the original.
        max_expected_drop: percentage points that the forecast may expect to be lost: its expected
            value is compared, not an end of its interval.
        min_speedup: median latency of the original over that of the compressed network.
        max_size: the size of ``model.onnx``: bytes, or a text with a unit such as "500 kB" or "2
            MiB".
    """

    fail_on_backdoor: bool = False
    max_accuracy_drop: float | None = setting(None, at_least=0, at_most=100)
    max_expected_drop: float | None = setting(None, at_least=0, at_most=100)
    min_speedup: float | None = setting(None, above=0, at_most=10**6)
    max_size: int | str | None = setting(None, at_least=1, at_most=2**63 - 1, longest=40)

    def check_together(self) -> None:
        """Refuse a size that nothing could keep to."""
        try:
            size = self.max_size_bytes
        except UsageError as error:
            raise UsageError(f"max-size: {error}") from None
        if self.max_size is not None and size < 1:
            raise UsageError(f"max-size is {shown(self.max_size)}; it must be 1 byte or more")

    @property
    def max_size_bytes(self) -> int:
        """``max_size`` in bytes; 0 where none is asked."""
        return 0 if self.max_size is None else read_size(self.max_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateVerdict:
    """The verdict on one gate that was asked.

    Attributes:
        gate: the name of the option and of the key in a policy file.
        asked: the bound, in ``unit``.
        measured: the measured number, in ``unit``; None where there is none, which never passes.
        unit: "suspicions", "percentage points", "bytes" or "times".
        passed: whether the bound is kept.
        detail: the evidence for the number, in words.
    """

    gate: GateName
    asked: int | float
    measured: int | float | None
    unit: str
    passed: bool
    detail: str

    @property
    def in_numbers(self) -> tuple[str, str]:
        """What was measured and what was asked, with as many digits as tell them apart."""
        if self.measured is None:
            return "none", f"{self.asked:.4g}"
        if self.unit == "bytes":
            return f"{self.measured:,.0f}", f"{self.asked:,.0f}"
        for digits in (4, 6, 9, 17):
            told = f"{self.measured:.{digits}g}", f"{self.asked:.{digits}g}"
            if told[0] != told[1]:
                return told
        return f"{self.measured:.4g}", f"{self.asked:.4g}"


def read_policy(path: Path | None, options: Mapping[str, Any]) -> Policy:
    """Read the policy in a file, strictly, with the options that were given on top.

    Raises:
        UsageError: the file cannot be read, holds an unknown key, or a value is out of range.
    """
    entries = {} if path is None else read_config(path)
    if path is not None:
        settings_from(Policy, entries, where=str(path))  # so that it answers for its own alone
    return settings_from(Policy, overlay(entries, options), where="options")


def read_size(text: int | str) -> int:
    """Return a size in bytes; kB, MB, GB are powers of 1000, KiB, MiB, GiB of 1024, in any case.

    Raises:
        UsageError: it is not a number with one of these units, or none.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise UsageError(
            f"size {str(text)[:40]!r} was given; it must be bytes, or a number with kB, MB, GB, "
            "KiB, MiB or GiB, such as 2 MiB"
        )
    return int(Decimal(match[1]) * _UNITS[(match[2] or "").lower()])


def judge_scan(policy: Policy, found: ScanReport) -> tuple[GateVerdict, ...]:
    """Judge the gate on the scan, which is known before the work that follows."""
    if not policy.fail_on_backdoor:
        return ()
    suspected = found.suspicions
    searches = ", ".join(search.in_words for search in found.searches)
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
    policy: Policy,
    evaluation: Evaluation | None,
    onnx_bytes: int,
    latency: LatencyReport,
    forecast: Forecast | None = None,
) -> tuple[GateVerdict, ...]:
    """Judge the gates on the result: accuracy, its forecast, size, speed, in this order.

    Args:
        policy: the gates that are asked.
        evaluation: the accuracy of both networks on the user's images; needed if accuracy is asked
            for.
        onnx_bytes: the size of ``model.onnx``.
        latency: the latency of both networks; the gain in the median is judged.
        forecast: what the compressed network probably lost; none, or one that does not apply, does
            not pass.
    """
    verdicts = []
    if policy.max_accuracy_drop is not None and evaluation is not None:
        verdicts.append(_judge_accuracy(policy.max_accuracy_drop, evaluation))
    if policy.max_expected_drop is not None:
        verdicts.append(_judge_forecast(policy.max_expected_drop, forecast))
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
        AccuracyGateError: accuracy fell further than allowed, or the forecast is of more.
        BudgetError: the file is too large or the gain in speed too small.
    """
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if not failed:
        return
    failures = "; ".join(_in_words(verdict) for verdict in failed)
    raise _ERRORS[failed[0].gate](
        f"{failures}; {NOTHING_WRITTEN}",
        gates=[asdict(verdict) for verdict in verdicts],
    )


def refuse_slower(latency: LatencyReport) -> None:
    """Refuse a network that is slower than the original by the whole 95 % interval.

    Raises:
        BudgetError: it is, on the device that the ranks were chosen for.
    """
    if latency.speedup_high < 1:
        raise BudgetError(
            "the compressed network is slower than the original on the machine that its latency "
            f"table was measured on ({latency.speedup:.2f}x, 95 % interval "
            f"{latency.speedup_low:.2f} to {latency.speedup_high:.2f}): {NOTHING_WRITTEN}; "
            "measure the table again on a quiet machine (`edgeclean latency-table`), or ask for a "
            "higher --speedup"
        )


def refuse_slower_than_planned(
    table: LatencyTable | None, latency: LatencyReport, runtimes: Runtimes
) -> None:
    """Refuse a network that is slower than the original in the runtime that its table is of.

    Raises:
        BudgetError: it is, on this machine.
    """
    if table is not None and is_of_this_machine(table):
        refuse_slower(latency)
    for one in runtimes.kept:
        if table is not None and is_of_runtime(table, one.form.name, one.form.version):
            refuse_slower(one.latency)


def refuse_larger(size_budget: int | None, onnx_bytes: int) -> None:
    """Refuse a file above the asked size.

    Raises:
        BudgetError: it is above.
    """
    if size_budget is not None and onnx_bytes > size_budget:
        raise BudgetError(
            f"model.onnx has {onnx_bytes} bytes, and --size-budget {size_budget} was asked: "
            f"{NOTHING_WRITTEN}; ask for a little less"
        )


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


def _judge_forecast(most: float, forecast: Forecast | None) -> GateVerdict:
    expected = None if forecast is None else forecast.expected_points
    return GateVerdict(
        gate="max-expected-drop",
        asked=most,
        measured=expected,
        unit="percentage points",
        passed=expected is not None and expected <= most,
        detail="no forecast" if forecast is None else f"forecast {forecast.in_words()}",
    )


def _judge_speed(least: float, latency: LatencyReport) -> GateVerdict:
    steady = "" if latency.steady else "; the machine was not steady"
    return GateVerdict(
        gate="min-speedup",
        asked=least,
        measured=latency.speedup,
        unit="times",
        passed=latency.speedup >= least,
        detail=f"{latency.runtime}, {counted(latency.threads, 'thread')} of this machine; 95 % "
        f"interval {latency.speedup_low:.2f} to {latency.speedup_high:.2f}{steady}",
    )


def _in_words(verdict: GateVerdict) -> str:
    bound = "at least" if verdict.gate == "min-speedup" else "at most"
    measured, asked = verdict.in_numbers
    number = f"{measured} {verdict.unit}" if verdict.measured is not None else "no number"
    return f"{verdict.gate}: {number} ({verdict.detail}), and {bound} {asked} was asked"
