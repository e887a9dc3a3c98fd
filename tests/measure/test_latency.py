from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from tiny_networks import Block, tiny_network

from edgeclean.errors import InputRejectedError, UsageError
from edgeclean.measure import latency
from edgeclean.measure.latency import LatencySettings, measure_pair
from exporters.onnx_exporter import ExportSettings, export_onnx
from exporters.session import OnnxSession

QUICK = LatencySettings(runs=20, warmup_runs=15)


@pytest.fixture(scope="module")
def small() -> bytes:
    return export_onnx(tiny_network(size=32))


@pytest.fixture(scope="module")
def large() -> bytes:
    return export_onnx(tiny_network(*(Block(64) for _ in range(3)), channels=64, size=32))


def test_a_network_of_a_hundredth_of_the_work_is_measured_as_faster(
    small: bytes, large: bytes
) -> None:
    report = measure_pair(large, small, QUICK)
    assert report.speedup > 2
    assert 1 < report.speedup_low <= report.speedup_high
    assert report.speedup == report.original.p50_ms / report.compressed.p50_ms
    assert measure_pair(small, large, QUICK).speedup < 0.5


def test_the_report_says_what_was_measured_and_how(small: bytes) -> None:
    report = measure_pair(small, small, QUICK)
    for sample in (report.original, report.compressed):
        assert sample.runs == len(sample.latencies_ms) == 20
        expected = np.percentile(sample.latencies_ms, [50, 90, 99])
        assert np.allclose([sample.p50_ms, sample.p90_ms, sample.p99_ms], expected, atol=1e-5)
        assert sample.min_ms == pytest.approx(min(sample.latencies_ms), abs=1e-5)
        spread = np.std(sample.latencies_ms) / np.mean(sample.latencies_ms)
        assert sample.coefficient_of_variation == pytest.approx(spread, rel=1e-3)
    assert (report.kind, report.threads, report.batch) == ("measured", 1, 1)
    assert report.input_shape == (3, 32, 32)
    assert not report.out_of_time
    assert 15 >= report.warmup_runs >= (15 if not report.settled else 10)
    assert report.steady == (
        max(report.original.coefficient_of_variation, report.compressed.coefficient_of_variation)
        <= 0.025
    )
    assert report.environment.versions["onnxruntime"] in report.runtime
    json.dumps(asdict(report))


def test_the_two_take_turns_and_the_first_of_a_pair_alternates(
    small: bytes, large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []
    run = OnnxSession.run

    def recorded(session: OnnxSession, images: Any) -> Any:
        order.append(id(session))
        return run(session, images)

    monkeypatch.setattr(OnnxSession, "run", recorded)
    report = measure_pair(small, large, QUICK)
    assert len(order) == 2 * (20 + report.warmup_runs)
    measured = np.array(order[-40:]).reshape(20, 2)
    assert (measured[:, 0] != measured[:, 1]).all()
    assert (measured[1:, 0] != measured[:-1, 0]).all()


def test_a_slow_network_ends_with_its_time_budget(large: bytes) -> None:
    started = time.perf_counter()
    settings = LatencySettings(runs=1_000_000, warmup_runs=1_000_000, time_budget_s=0.5)
    report = measure_pair(large, large, settings)
    assert time.perf_counter() - started < 5
    assert report.out_of_time
    assert report.original.runs == report.compressed.runs >= 5


def test_five_runs_are_made_even_without_any_time(large: bytes) -> None:
    report = measure_pair(large, large, LatencySettings(time_budget_s=1e-6))
    assert report.original.runs == 5
    assert not report.settled


def test_the_interval_of_two_constant_latencies_is_their_ratio() -> None:
    latencies = np.tile([3.0, 2.0], (30, 1))
    assert latency.speedup_interval(latencies, np.random.default_rng(0)) == (1.5, 1.5)


def test_the_interval_holds_pairs_together() -> None:
    """A machine that slows both by the same factor says nothing about their ratio."""
    noise = np.random.default_rng(0).uniform(1, 10, size=(50, 1))
    low, high = latency.speedup_interval(noise * [3.0, 2.0], np.random.default_rng(0))
    assert low == pytest.approx(1.5)
    assert high == pytest.approx(1.5)


def test_an_open_batch_is_measured_at_the_asked_size() -> None:
    model = export_onnx(tiny_network(), ExportSettings(batch=None))
    settings = LatencySettings(runs=5, warmup_runs=5, batch=3)
    assert measure_pair(model, model, settings).batch == 3


def test_a_fixed_batch_that_is_not_the_asked_one_is_refused(small: bytes) -> None:
    with pytest.raises(UsageError, match="batch 2 was asked, and the original is fixed to batch 1"):
        measure_pair(small, small, LatencySettings(batch=2))


def test_networks_for_different_images_are_refused(small: bytes) -> None:
    with pytest.raises(UsageError, match="only networks of one input shape"):
        measure_pair(small, export_onnx(tiny_network(size=16)), QUICK)


def test_a_broken_file_is_refused(small: bytes) -> None:
    with pytest.raises(InputRejectedError, match="ONNX Runtime cannot load"):
        measure_pair(small, small[:100], QUICK)


@pytest.mark.parametrize(
    "settings",
    [
        {"threads": 0},
        {"runs": 0},
        {"warmup_runs": 0},
        {"batch": 0},
        {"time_budget_s": 0.0},
        {"time_budget_s": float("nan")},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        LatencySettings(**settings)  # type: ignore[arg-type]
