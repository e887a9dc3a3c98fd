"""The search for the largest ratio that keeps an accuracy, and the gate on the forecast."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Terminal
from report_evidence import evidence, scan_report, synthetic_images
from small_checkpoint import OPTIONS, QUICK, write_checkpoint
from torch import nn

from edgeclean.accuracy_goal import Forecasts, Probe, largest_ratio, refuse_not_kept
from edgeclean.compression.settings import SEARCHED_RATIOS, RankSettings
from edgeclean.config import PipelineSettings, overlay, settings_from
from edgeclean.errors import AccuracyGateError, RatioError, UsageError
from edgeclean.gates import Policy, judge_result, refuse_failed
from edgeclean.images.batchnorm import reestimate_batchnorm_
from edgeclean.images.procedural import procedural_images
from edgeclean.measure.agreement import KINDS, Agreement
from edgeclean.measure.forecast import Forecast, calibration, forecast, without_number
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import LoadedNetwork, ModelSpec
from edgeclean.outcome import Compression
from edgeclean.pipeline import run_stages
from edgeclean.report.page import render_html
from edgeclean.report.report import build_report

SPEC = ModelSpec(
    architecture="code", input_shape=(3, 32, 32), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3
)
POINTS = 2.0  # asked of the small network


def of(agreed: float) -> Forecast:
    found = [
        Agreement(
            kind=kind,
            images=200,
            agreed=agreed,
            agreed_where_sure=agreed,
            distance=1 - agreed,
        )
        for kind in KINDS
    ]
    return forecast(calibration(), found, SPEC, None)


@pytest.mark.parametrize("most", range(len(SEARCHED_RATIOS)))
def test_the_largest_ratio_within_is_found_and_the_next_was_tried(most: int) -> None:
    """Whatever the losses are, as long as they rise; with ratios out of reach at the end."""
    for reach in range(most + 1, len(SEARCHED_RATIOS) + 1):

        def probe(ratio: float, reach: int = reach) -> float | None:
            place = SEARCHED_RATIOS.index(ratio)
            return None if place >= reach else 1.5 + (place - most)

        ratio, probes = largest_ratio(1.5, probe)
        assert ratio == SEARCHED_RATIOS[most]
        tried = {one.ratio: one.expected_points for one in probes}
        assert tried[ratio] == 1.5
        assert set(SEARCHED_RATIOS[most + 1 : most + 2]) <= set(tried)
        assert list(tried) == sorted(tried)
        assert len(tried) <= 4


@pytest.mark.parametrize(("lost", "word"), [(2.0, "2.00 points"), (None, "more than it can tell")])
def test_a_loss_that_no_ratio_keeps_is_refused(lost: float | None, word: str) -> None:
    with pytest.raises(RatioError, match=f"--keep-accuracy 1.5 cannot be met.*{word}"):
        largest_ratio(1.5, lambda _: lost)


def test_an_accuracy_is_a_goal_like_the_others() -> None:
    for other in ("ratio", "speedup", "latency_budget_ms", "size_budget"):
        with pytest.raises(UsageError, match="a network has one goal"):
            settings_from(RankSettings, {"keep_accuracy": 1.0, other: 2})
    for wrong in (0, -1, 101, float("nan"), "1"):
        with pytest.raises(UsageError, match=r"keep_accuracy is .*; it must be a number above 0"):
            settings_from(RankSettings, {"keep_accuracy": wrong})
    assert RankSettings(keep_accuracy=1.0, measure="params").ratio_or_default == SEARCHED_RATIOS[0]


def test_the_gate_compares_the_expected_loss() -> None:
    """At its bound it passes, beyond it fails; without a forecast it never passes."""
    told = of(0.97)
    assert told.expected_points is not None
    facts: dict[str, Any] = {"evaluation": None, "onnx_bytes": 1, "latency": evidence().latency}
    for most, passes in ((told.expected_points, True), (told.expected_points - 0.01, False)):
        (verdict,) = judge_result(Policy(max_expected_drop=most), **facts, forecast=told)
        assert verdict.passed == passes
    with pytest.raises(AccuracyGateError, match=r"max-expected-drop: .*forecast .* points lost"):
        refuse_failed([verdict])
    for none in (None, without_number(calibration(), ["images are of another kind"])):
        (verdict,) = judge_result(Policy(max_expected_drop=100.0), **facts, forecast=none)
        assert not verdict.passed
    assert "images are of another kind" in verdict.detail


def test_the_finished_network_keeps_what_was_asked_or_is_refused() -> None:
    told = of(0.97)
    assert told.expected_points is not None
    refuse_not_kept(None, told)
    refuse_not_kept(told.expected_points, told)
    with pytest.raises(AccuracyGateError, match="is not met by the finished network"):
        refuse_not_kept(told.expected_points - 0.01, told)
    with pytest.raises(AccuracyGateError, match="none: of another kind"):
        refuse_not_kept(100.0, without_number(calibration(), ["of another kind"]))


@pytest.mark.parametrize("option", ["--max-expected-drop", "--keep-accuracy"])
def test_what_needs_a_forecast_is_refused_at_once_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    option: str,
) -> None:
    """The small checkpoint has 4 classes and 12 pixels."""
    monkeypatch.chdir(tmp_path)
    words = [write_checkpoint(tmp_path), *OPTIONS, "-o", tmp_path / "build", option, "2"]
    code, _, told = Terminal(monkeypatch, capsys)("compress", *words)
    assert code == 5
    assert f"{option} needs a forecast" in told
    assert "12x12 pixels" in told
    assert not (tmp_path / "build").exists()


def small_network() -> LoadedNetwork:
    """Untrained; kernels of rank 5, so that it can be 2.5 times smaller and lose nothing.

    It has the statistics of images, and classes that come equally often.
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers: list[nn.Module] = []
        for given, made in ((3, 16), (16, 24), (24, 24)):
            conv = nn.Conv2d(given, made, 3, 2, 1, bias=False)
            if given > 3:
                core = torch.einsum("or,rskl->oskl", torch.randn(made, 5), torch.randn(5, 5, 3, 3))
                kernel = torch.einsum("oskl,si->oikl", core, torch.randn(5, given))
                conv.weight = nn.Parameter(kernel)
            layers += [conv, nn.BatchNorm2d(made), nn.ReLU()]
        head = nn.Linear(24, 10)
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    images = procedural_images(128, SPEC.input_shape, torch.Generator().manual_seed(2))
    reestimate_batchnorm_(module, normalize(images, SPEC))
    with torch.no_grad():
        answers = module(normalize(images, SPEC))
        head.bias -= answers.mean(0)
        head.weight /= answers.std(0)[:, None]
        head.bias /= answers.std(0)
    return LoadedNetwork(module=module.eval(), spec=SPEC, source_sha256="0" * 64)


def searched(points: float) -> PipelineSettings:
    changed = {
        "ranks": {"keep_accuracy": points},
        "finetune": {"steps": 4, "learning_rate": 1e-5},
        "purify": {"mode": "none"},
        "scan": {"searches": ["patch bank"]},
        "forecast": {"synthetic": 100, "steps": 1, "procedural": 100, "probe_share": 0.25},
    }
    return settings_from(PipelineSettings, overlay(QUICK, changed))


@pytest.fixture(scope="module")
def kept() -> Compression:
    return run_stages(small_network(), searched(POINTS))


def test_a_run_finds_a_ratio_within_and_the_next_is_not(kept: Compression) -> None:
    forecasts = kept.forecasts
    within = [one for one in forecasts.probes if (one.expected_points or 0) <= POINTS]
    beyond = [one for one in forecasts.probes if one not in within]
    plan = next(one for one in kept.compressed.history if one.stage == "truncate")
    ratio = plan.notes["ratio_asked"]
    assert ratio == max(one.ratio for one in within if one.expected_points is not None)
    assert beyond
    following = SEARCHED_RATIOS[SEARCHED_RATIOS.index(ratio) + 1]
    assert min(one.ratio for one in beyond) == following
    assert forecasts.compressed.expected_points is not None
    assert forecasts.compressed.expected_points <= POINTS


@pytest.mark.slow
def test_a_search_is_what_its_ratio_alone_would_be(kept: Compression) -> None:
    """The search leaves nothing behind: the same bytes as of the ratio that it chose."""
    plan = next(one for one in kept.compressed.history if one.stage == "truncate")
    settings = searched(POINTS)
    ranks = replace(settings.ranks, keep_accuracy=None, ratio=plan.notes["ratio_asked"])
    alone = run_stages(small_network(), replace(settings, ranks=ranks))
    assert alone.model == kept.model
    assert alone.forecasts.probes == ()
    assert alone.forecasts.compressed == kept.forecasts.compressed


def page_of(told: Forecast, probes: tuple[Probe, ...] = ()) -> str:
    whole = Forecasts(purified=told, compressed=told, probes=probes)
    facts = evidence(suspected=False)
    gates = judge_result(Policy(max_expected_drop=100.0), None, 1, facts.latency, told)
    gates = tuple(one for one in gates if one.passed)
    document = build_report(replace(facts, forecast=whole.summary(), gates=gates))
    document["manifest_sha256"] = "ef" * 32
    manifest = {"files": {"model.onnx": {"bytes": 500_000, "sha256": "cd" * 32}}}
    found = scan_report(suspected=False)
    return render_html(manifest, document, images=synthetic_images(), scan=found)


def test_the_page_gives_the_forecast_and_how_far_it_is_to_be_trusted() -> None:
    told, learnt = of(0.97), calibration()
    page = page_of(
        told, (Probe(ratio=2.0, expected_points=0.4), Probe(ratio=4.0, expected_points=None))
    )
    for words in (
        "What was probably lost: a forecast",
        f"{told.expected_points:.1f} percentage points",
        f"{told.low_points:.1f} to {told.high_points:.1f}",
        "It is no measurement.",
        f"erred by {learnt.mean_error_points:.1f} points on average",
        f"held {100 * learnt.coverage:.0f} % of the losses",
        "0.4 points; 4",
        "out of reach.",
        "max-expected-drop",
    ):
        assert words in page, words


def test_the_page_says_why_there_is_no_forecast() -> None:
    page = page_of(without_number(calibration(), ["images are <b>of another kind</b>"]))
    assert "There is no forecast for this network: images are &lt;b&gt;of another" in page
    assert "percentage points of accuracy are expected" not in page
