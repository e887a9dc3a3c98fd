"""Strangers' networks are measured in a limited process, as fairly as our own in this one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_networks import Block, tiny_network

from edgeclean.child.parcel import Parcel
from edgeclean.errors import InputRejectedError, ToolchainError, UsageError
from edgeclean.load.limits import LoadLimits
from edgeclean.measure import untrusted_latency
from edgeclean.measure.latency import LatencySettings
from edgeclean.measure.turns import PairTimes, times_told
from edgeclean.measure.untrusted_latency import measure_untrusted_pair, time_task
from exporters.onnx_exporter import ExportSettings, export_onnx

QUICK = LatencySettings(runs=20, warmup_runs=15)


@pytest.fixture(scope="module")
def small() -> bytes:
    return export_onnx(tiny_network(size=32))


@pytest.fixture(scope="module")
def large() -> bytes:
    return export_onnx(tiny_network(*(Block(64) for _ in range(3)), channels=64, size=32))


def test_the_report_is_that_of_a_pair(small: bytes, large: bytes) -> None:
    report = measure_untrusted_pair(large, small, QUICK)
    assert report.speedup > 2
    assert report.speedup == report.original.p50_ms / report.compressed.p50_ms
    assert report.original.runs == report.compressed.runs == 20
    assert report.input_shape == (3, 32, 32)
    assert (report.provider, report.kind) == ("CPUExecutionProvider", "measured")
    assert 10 <= report.warmup_runs <= 15
    assert not report.out_of_time


def test_both_run_in_one_process_that_is_not_this_one(
    small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a network is opened here; the two still take turns, in the same child."""
    packed: list[tuple[Any, ...]] = []
    isolated = untrusted_latency.parse_isolated

    def recorded(*given: Any) -> Parcel:
        packed.append(given)
        return isolated(*given)

    monkeypatch.setattr(untrusted_latency, "parse_isolated", recorded)
    monkeypatch.setattr("exporters.session.open_session", lambda *_: pytest.fail("opened here"))
    report = measure_untrusted_pair(small, small, QUICK)
    assert report.original.runs == 20
    ((task, given, limits),) = packed
    assert task is time_task
    assert list(given.files.values()) == [small, small]
    assert limits.memory_bytes == LoadLimits().memory_bytes
    assert limits.cpu_seconds == 2 * 6 * 10 + 60


def test_the_limits_grow_with_what_was_asked(small: bytes) -> None:
    settings = LatencySettings(threads=3, batch=4, time_budget_s=10.0)
    limits = untrusted_latency._for_all_runs(LoadLimits(cpu_seconds=2), settings)
    assert limits.cpu_seconds == 2 * 6 * 2 * 4 + 30
    assert limits.memory_bytes == 4 * 2**30 + 2 * 2**27
    most = LatencySettings(threads=1024, batch=2**16, time_budget_s=10.0**6)
    assert untrusted_latency._for_all_runs(LoadLimits(), most).cpu_seconds == 10**6


def test_an_open_batch_is_measured_at_the_asked_size() -> None:
    model = export_onnx(tiny_network(), ExportSettings(batch=None))
    settings = LatencySettings(runs=5, warmup_runs=5, batch=3)
    assert measure_untrusted_pair(model, model, settings).batch == 3


@pytest.mark.parametrize("place", [0, 1])
def test_a_network_that_is_none_is_named(small: bytes, place: int) -> None:
    pair = [small, small]
    pair[place] = small[:100]
    with pytest.raises(InputRejectedError, match=f"^{'ab'[place]}: "):
        measure_untrusted_pair(pair[0], pair[1], QUICK, names=("a", "b"))


def test_networks_that_cannot_be_compared_are_refused(small: bytes) -> None:
    with pytest.raises(UsageError, match="only networks of one input shape"):
        measure_untrusted_pair(small, export_onnx(tiny_network(size=16)), QUICK)
    with pytest.raises(UsageError, match="batch 2 was asked"):
        measure_untrusted_pair(small, small, LatencySettings(batch=2))
    with pytest.raises(ToolchainError, match="the provider tensorrt was asked"):
        measure_untrusted_pair(b"", b"", LatencySettings(provider="tensorrt"))


def test_a_network_over_the_limits_is_refused_before_it_is_measured(
    large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrusted_latency, "time_pair", lambda *_: pytest.fail("measured"))
    with pytest.raises(InputRejectedError, match="the limits are activations 1000"):
        measure_untrusted_pair(large, large, QUICK, limits=LoadLimits(activations=1000))


def times(*rows: tuple[float, float], cut: int = 0, **facts: object) -> Parcel:
    whole = np.array(rows, np.float64).tobytes()
    facts = {"input_shape": [3, 32, 32], "warmup_runs": 1, "settled": True, **facts}
    return Parcel(facts=facts, files={"latencies_ms": whole[: len(whole) - cut]})


@pytest.mark.parametrize(
    "answer",
    [
        Parcel(),
        Parcel(facts=times((1, 1)).facts),
        Parcel(facts={"settled": True}, files=times((1, 1)).files),
        times((1, 1), input_shape=[3, 32]),
        times((1, 1), warmup_runs=[]),
        times((1, 1), warmup_runs=-1),
        times((1, 1), warmup_runs=99),
        times(),
        times((1, 1), cut=1),
        times((1, 1), cut=8),
        times((1, float("nan"))),
        times((float("inf"), 1)),
        times((1, 0)),
        times((-1, 1)),
        times(*[(1, 1)] * 21),
    ],
)
def test_a_child_that_was_taken_over_may_answer_anything(answer: Parcel) -> None:
    with pytest.raises(InputRejectedError, match="answered nonsense"):
        times_told(answer, QUICK.turns, InputRejectedError("it answered nonsense"))


def test_times_come_back_as_they_were_measured() -> None:
    given = PairTimes(
        latencies_ms=np.array([[1, 2], [3, 4.5]]),
        input_shape=(3, 9, 8),
        warmup_runs=5,
        settled=False,
    )
    found = times_told(given.packed(), QUICK.turns, InputRejectedError("no"))
    assert np.array_equal(found.latencies_ms, given.latencies_ms)
    assert (found.input_shape, found.warmup_runs, found.settled) == ((3, 9, 8), 5, False)


def test_the_child_says_why_it_cannot_run_them(small: bytes) -> None:
    files = {"original": small, "compressed": small}
    given = Parcel(facts={"settings": {"runs": 2, "batch": 2}}, files=files)
    with pytest.raises(InputRejectedError, match="cannot run the networks: batch 2 was asked"):
        time_task(given)
