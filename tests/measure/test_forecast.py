"""What agreement says of lost accuracy, where it says nothing, and what is shipped of the study."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_networks import tiny_network
from torch import nn

from edgeclean.measure.agreement import (
    KINDS,
    Agreement,
    HeldOutSettings,
    agreements,
    answers_of,
    answers_of_file,
    held_out,
)
from edgeclean.measure.forecast import (
    FEWEST_IMAGES,
    calibration,
    forecast,
    outside_by_form,
    read_calibration,
    yardstick,
)
from edgeclean.networks.state import LoadedNetwork, ModelSpec
from exporters.onnx_exporter import export_onnx

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks/results/forecast.json").read_text("utf-8"))
SPEC = ModelSpec(
    architecture="code", input_shape=(3, 32, 32), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3
)
FEW = HeldOutSettings(synthetic=12, steps=1, procedural=120)
SHARES = st.floats(0, 1)


def found(*agreed: float, distance: float | None = None) -> tuple[Agreement, ...]:
    return tuple(
        Agreement(
            kind=kind,
            images=FEWEST_IMAGES,
            agreed=one,
            agreed_where_sure=one,
            distance=1 - one if distance is None else distance,
        )
        for kind, one in zip(KINDS, agreed, strict=True)
    )


@given(st.lists(SHARES, min_size=4, max_size=4), st.lists(st.floats(0, 9), min_size=2, max_size=2))
def test_less_agreement_never_forecasts_less_loss(
    shares: list[float], distances: list[float]
) -> None:
    """Nor does a larger distance, and neither lowers an end of the interval."""
    a, b, c, d = shares
    more = found(max(a, b), max(c, d), distance=min(distances))
    less = found(min(a, b), min(c, d), distance=max(distances))
    learnt = calibration()
    first, second = learnt.expected_points(more), learnt.expected_points(less)
    assert 0 <= first <= second <= 100
    for sign in (-1, 1):
        low, high = (one + sign * learnt.half_width(one) for one in (first, second))
        assert low <= high + 1e-9
    assert learnt.half_width(first) > 0


def test_a_network_that_disagrees_more_is_forecast_more() -> None:
    learnt = calibration()
    losses = [learnt.expected_points(found(one, one)) for one in (1.0, 0.98, 0.9, 0.8)]
    assert losses[0] == 0
    assert losses == sorted(set(losses))


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"input_shape": (1, 32, 32), "mean": (0.5,), "std": (0.2,)}, "1 channels"),
        ({"input_shape": (3, 224, 224)}, "224x224 pixels"),
        ({"input_shape": (3, 32, 24)}, "32x24 pixels"),
        ({"classes": 4}, "4 classes"),
        ({"classes": 1000}, "1000 classes"),
    ],
)
def test_there_is_no_number_outside_of_what_was_seen(changed: dict[str, object], word: str) -> None:
    spec = dataclasses.replace(SPEC, **changed)  # type: ignore[arg-type]
    told = forecast(calibration(), found(1.0, 1.0), spec, None)
    assert (told.applies, told.expected_points, told.high_points) == (False, None, None)
    assert word in told.outside[0]
    assert told.in_words().startswith("none: ")
    assert outside_by_form(SPEC, calibration()) == ()


def test_other_reasons_for_no_number() -> None:
    learnt = calibration()
    far = learnt.seen.most_distance
    assert forecast(learnt, found(1.0, 1.0), SPEC, far).applies
    assert "photographs" in forecast(learnt, found(1.0, 1.0), SPEC, far * 1.01).outside[0]
    assert "statistics" in forecast(learnt, found(1.0, 1.0), SPEC, float("nan")).outside[0]
    assert "the most that it tells of" in forecast(learnt, found(0.0, 0.0), SPEC, None).outside[0]
    few = [dataclasses.replace(one, images=FEWEST_IMAGES - 1) for one in found(1.0, 1.0)]
    assert "could be counted" in forecast(learnt, few, SPEC, None).outside[0]


def test_images_of_an_unlearned_class_are_not_counted() -> None:
    """What is answered otherwise only where the original said 2 agrees once 2 is unlearned."""
    original = {"synthetic": nn.functional.one_hot(torch.tensor([0, 1, 2, 2]), 3).float()}
    other = {"synthetic": nn.functional.one_hot(torch.tensor([0, 1, 0, 1]), 3).float()}
    (all_of_them,) = agreements(original, other)
    assert (all_of_them.images, all_of_them.agreed) == (4, 0.5)
    assert all_of_them.distance > 0
    (counted,) = agreements(original, other, [2])
    assert (counted.images, counted.agreed, counted.distance) == (2, 1.0, 0.0)
    (none,) = agreements(original, other, [0, 1, 2])
    assert none.images == 0


def test_only_the_surer_half_weighs_in_the_share() -> None:
    """Margins of 4, 3, 2 and 1: the other network differs on the two smallest alone."""
    margins = torch.tensor([1.0, 4.0, 2.0, 3.0])
    original = {"synthetic": torch.stack([margins, torch.zeros(4)], 1)}
    flipped = {"synthetic": original["synthetic"] * torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])}
    (one,) = agreements(original, flipped)
    assert (one.agreed, one.agreed_where_sure) == (0.5, 1.0)
    (shifted,) = agreements(original, {"synthetic": original["synthetic"] + 7})
    assert shifted.distance < 1e-9


def test_held_out_images_are_of_every_kind_and_of_no_other_stage() -> None:
    network = tiny_network()
    images = held_out(network, FEW, seed=3)
    assert set(images) == set(KINDS) == set(calibration().kinds)
    again = held_out(network, FEW, seed=3)
    for kind, one in images.items():
        assert torch.equal(one.pixels, again[kind].pixels)
        assert not torch.equal(one.pixels, held_out(network, FEW, seed=4)[kind].pixels)
        settings = FEW
        for seed in (3, 4):  # what a run of this seed draws for itself, with the same settings
            assert not torch.equal(one.pixels, KINDS[kind](network, settings, seed).pixels)


def test_a_file_answers_as_its_network_and_agrees_with_itself() -> None:
    network = tiny_network()
    images = held_out(network, FEW, seed=0)
    stick = yardstick(network, images)
    of_file = answers_of_file(export_onnx(network), network.spec, images)
    for kind, answers in answers_of(network, images).items():
        assert torch.allclose(answers, of_file[kind], atol=1e-3)
    assert [one.agreed for one in agreements(stick.answers, of_file)] == [1.0, 1.0]


def test_what_ships_is_what_the_study_found() -> None:
    assert calibration() == read_calibration(RESULTS["calibration"])
    settings = dataclasses.asdict(HeldOutSettings())
    assert calibration().held_out == settings  # else it was learnt with other images
    assert calibration().level == 0.9


def test_the_errors_are_those_of_networks_left_out() -> None:
    """The study's own table, added up again."""
    students = RESULTS["students"]
    errors = [abs(one["expected_left_out"] - one["lost"]) for one in students]
    assert calibration().mean_error_points == pytest.approx(sum(errors) / len(errors), abs=0.006)
    held = [error <= one["half_width"] for error, one in zip(errors, students, strict=True)]
    assert calibration().coverage == pytest.approx(sum(held) / len(held), abs=0.001)
    assert calibration().points == len(students)
    assert calibration().networks == len({one["network"] for one in students})


def test_the_texts_state_the_coverage_that_was_measured() -> None:
    learnt = calibration()
    text = " ".join((ROOT / "docs/guides/forecast.md").read_text("utf-8").split())
    assert re.findall(r"held (\d+) % of the losses", text) == [f"{100 * learnt.coverage:.0f}"]
    assert re.findall(r"erred by ([\d.]+) points", text) == [f"{learnt.mean_error_points:.1f}"]
    assert f"{learnt.points} states of {learnt.networks} networks" in text


def test_a_yardstick_without_images_forecasts_nothing() -> None:
    one = tiny_network()
    network = LoadedNetwork(module=one.module, spec=one.spec, source_sha256="0" * 64)
    told = yardstick(network, {}).of_network(network, ())
    assert not told.applies
    assert told.agreements == ()
