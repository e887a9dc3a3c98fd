"""The length of a run is worked out in one place, from the settings and what one pass takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_checkpoint import quick_settings
from tiny_networks import tiny_network

from edgeclean.config import PipelineSettings, overlay, settings_for
from edgeclean.devices.targets import load_target
from edgeclean.effort import LEVELS
from edgeclean.estimate import PassSeconds, announce, parts_of, pass_seconds
from edgeclean.progress import Part, expected_seconds, silent

CPU = load_target("cpu")
EACH = PassSeconds(forward=1e-3, images=2e-3, weights=3e-3, layers=20)


def whole(entries: dict[str, Any], each: PassSeconds = EACH) -> float:
    parts = parts_of(settings_for(CPU, entries), 10, each)
    return sum(expected_seconds(parts).values())


@pytest.mark.parametrize("mode", ["guided", "clean-compact", "none"])
def test_more_effort_takes_longer_and_the_stages_add_up(mode: str) -> None:
    totals = []
    for level in LEVELS:
        settings = settings_for(CPU, {"effort": level, "purify": {"mode": mode}})
        parts = parts_of(settings, 10, EACH)
        stages = expected_seconds(parts)
        total = sum(part.seconds for part in parts if part.expected)
        assert sum(stages.values()) == pytest.approx(total)
        assert all(part.seconds >= 0 for part in parts)
        totals.append(total)
    assert totals == sorted(totals)
    assert totals[0] < totals[1] / 2 < totals[1] * 1.5 < totals[2]


@pytest.mark.parametrize(
    "longer",
    [
        {"synthesize": {"steps": 160}},
        {"synthesize": {"recovery_count": 4096}},
        {"scan": {"steps": 200}},
        {"scan": {"restarts": 4}},
        {"scan": {"bank_candidates": 20000}},
        {"purify": {"search_steps": 400}},
        {"purify": {"unlearn": {"steps": 400}}},
        {"ranks": {"images": 900}},
        {"finetune": {"steps": 4000}},
        {"finetune": {"batch_size": 640}},
        {"ranks": {"ratio": 4.0}},
    ],
    ids=str,
)
def test_what_makes_a_stage_longer_makes_the_estimate_longer(longer: dict[str, Any]) -> None:
    assert whole(longer) > whole({}) + 1
    assert whole(overlay({"effort": "quick"}, longer)) > whole({"effort": "quick"}) + 1


def test_a_slower_machine_takes_longer_in_proportion() -> None:
    checks = expected_seconds(parts_of(PipelineSettings(), 10, EACH))["checks"]
    slow = replace(EACH, forward=3e-3, images=6e-3, weights=9e-3)
    assert whole({}, slow) - checks == pytest.approx(3 * (whole({}) - checks))


def test_a_scan_is_the_beginning_of_the_run() -> None:
    settings = PipelineSettings()
    scan = parts_of(settings, 10, EACH, only_scan=True)
    assert scan == parts_of(settings, 10, EACH)[: len(scan)]
    assert set(expected_seconds(scan)) == {"synthesize", "scan"}


def test_passes_are_measured_without_drawing_at_random() -> None:
    before = torch.random.get_rng_state()
    each = pass_seconds(tiny_network())
    assert torch.equal(before, torch.random.get_rng_state())
    assert min(each.forward, each.images, each.weights) > 0
    assert each.layers > 0


def test_nothing_is_measured_for_who_does_not_want_to_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Sequence[Part]] = []

    class Wants:
        def __call__(self, description: str, done: int, total: int) -> None: ...

        def expect(self, parts: Sequence[Part]) -> None:
            asked.append(parts)

    announce(Wants(), tiny_network(), quick_settings())
    assert next(part.stage for part in asked[0]) == "synthesize"

    def refuse(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("edgeclean.estimate.pass_seconds", refuse)
    announce(silent, tiny_network(), quick_settings())


def test_gratings_cost_forward_passes_alone_and_no_more_for_a_thousand_classes() -> None:
    def seconds(classes: int, entries: dict[str, Any], each: PassSeconds = EACH) -> float:
        settings = settings_for(CPU, overlay({"scan": {"searches": ["gratings"]}}, entries))
        (part,) = [one for one in parts_of(settings, classes, each) if one.stage == "scan"]
        return part.seconds

    assert 0 < seconds(10, {}) <= seconds(12, {}) == seconds(1000, {"scan": {"steps": 9000}})
    assert seconds(10, {}, replace(EACH, images=9.0, weights=9.0)) == seconds(10, {})
    assert seconds(10, {}, replace(EACH, forward=2e-3)) == pytest.approx(2 * seconds(10, {}))
