"""The study of few classes: its halves share no task, and the tool says what the results say."""

import pytest
import torch

from benchmarks.networks.few_classes import TASKS, all_networks, plain_network
from benchmarks.rendering.few_classes_table import (
    FEW_CLASSES,
    counts_of,
    known_cells,
    named,
    table,
)
from edgeclean.backdoor.few_classes import FEW, MEASURED, caveat


def test_both_halves_have_clean_and_attacked_networks_and_share_no_task():
    networks = all_networks()
    assert len({one.name for one in networks}) == len(networks)
    tasks = {
        half: {one.task for one in networks if one.half == half} for half in ("choice", "report")
    }
    assert not tasks["choice"] & tasks["report"]
    assert tasks["choice"] | tasks["report"] == set(TASKS)
    for half in tasks:
        attacks = [one.attack for one in networks if one.half == half]
        assert attacks.count("clean") >= 8
        assert len(attacks) - attacks.count("clean") >= 8


def test_the_network_takes_images_of_each_form():
    for shape in ((3, 32, 32), (1, 28, 28), (3, 64, 64)):
        assert plain_network(3, shape)(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("classes", sorted(MEASURED))
def test_what_is_said_of_a_verdict_is_what_was_measured(classes):
    assert counts_of(known_cells(), "report", classes) == MEASURED[classes]
    for number in MEASURED[classes]:
        assert f" {number}" in caveat(classes)


def test_of_more_classes_nothing_is_said():
    assert set(MEASURED) == set(range(2, FEW + 1))
    assert caveat(FEW + 1) is None


def cell(**changes):
    plain = {
        "half": "report",
        "classes": 2,
        "attack": "badnets",
        "target": 1,
        "rates": {"acc": {"percent": 90.0}, "asr": {"percent": 99.0}},
        "verdict": "suspected",
        "suspects": [{"target": 1, "score": 4.0, "search": "patch bank"}],
        "environment": {"processor": "P", "code": "c"},
    }
    return plain | changes


def test_an_attack_counts_as_found_by_its_first_suspect_and_only_where_it_works():
    wrong = cell(
        suspects=[{"target": 0, "score": 4.0, "search": "patch bank"}, *cell()["suspects"]]
    )
    weak = cell(rates={"acc": {"percent": 90.0}, "asr": {"percent": 40.0}}, suspects=[])
    alarm = cell(attack="clean", target=None, rates={"acc": {"percent": 90.0}})
    quiet = alarm | {"verdict": "not found", "suspects": []}
    assert named(cell())
    assert not named(wrong)
    cells = {"a": cell(), "b": wrong, "c": weak, "d": alarm, "e": quiet}
    assert counts_of(cells, "report", 2) == (2, 1, 2, 1)
    assert "| report | 2 | 2 | 1 | 2 | 1 | 1 |" in table(cells)


def test_the_table_is_that_of_the_results():
    assert FEW_CLASSES.with_suffix(".md").read_text("utf-8") == table(known_cells())
