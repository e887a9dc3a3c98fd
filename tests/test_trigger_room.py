"""How far a trigger may grow while it is unlearned: to what the other classes' cost."""

import math

import pytest
import torch
from torch import nn

from edgeclean.purification.search import Round, search_family, triggers_of_scan
from edgeclean.purification.unlearn import UnlearnSettings, Wanted, _Population
from edgeclean.scan.gradient import ELSEWHERE, Evidence, Found
from edgeclean.scan.report import ScanReport, SearchRecord, Suspect
from edgeclean.scan.triggers import AdditiveTrigger, MaskedTrigger
from edgeclean.synthesis.priors import procedural_images

ADDITIVE = AdditiveTrigger(torch.full((3, 8, 8), 2 / 255))
PATCH = MaskedTrigger(mask=torch.eye(8)[None], pattern=torch.zeros(3, 8, 8))


def suspect(target, search, trigger):
    return Suspect(
        target=target, source=None, search=search, score=9.0, cost=1.0, success=1.0, trigger=trigger
    )


def record(name, *costs):
    blank = (0.0,) * len(costs)
    return SearchRecord(
        name=name, sees="", blind_to="", cost_unit="", costs=costs, successes=blank, scores=blank,
        threshold=1.0,
    )  # fmt: skip


def reported(suspects, searches):
    return ScanReport(
        verdict="suspected", suspects=tuple(suspects), searches=tuple(searches), images=1
    )


@pytest.mark.parametrize("search", ["additive", "warp"])
def test_the_scans_own_trigger_may_grow_to_what_the_other_classes_cost(search):
    """The median is of the unsuspected classes that were reached: of 4, 8 and 30, not of 1 or 2."""
    found = [suspect(0, search, ADDITIVE), suspect(1, search, ADDITIVE)]
    report = reported(found, [record(search, 1.0, 2.0, 4.0, math.inf, 30.0, 8.0)])
    assert [one.room for one in triggers_of_scan(report, (0, 1))] == [8.0, 8.0]
    alone = triggers_of_scan(report, (0,))  # class 1 is an ordinary one then
    assert [(one.target, one.room) for one in alone] == [(0, 6.0)]


@pytest.mark.parametrize(
    ("target", "search", "trigger", "costs"),
    [
        (0, "masked patch", PATCH, (1.0, 40.0, 50.0)),  # a larger mask is another trigger
        (0, "patch bank", PATCH, (1.0, 40.0, 50.0)),
        (None, "all-to-all", ADDITIVE, (3.0, 3.0, 3.0)),
        (0, "additive", ADDITIVE, (1.0, math.inf, math.inf)),  # nothing to compare with
    ],
)
def test_other_triggers_keep_the_room_that_the_settings_give(target, search, trigger, costs):
    report = reported([suspect(target, search, trigger)], [record(search, *costs)])
    goal = ELSEWHERE if target is None else target
    assert triggers_of_scan(report, (goal,)) == [Wanted(trigger, goal, 0.0)]


@pytest.mark.parametrize(("name", "room"), [("additive", 20.0), ("masked patch", 0.0)])
def test_a_rounds_own_triggers_have_the_room_of_its_own_search(monkeypatch, name, room):
    def found(module, evidence, slots, *rest):
        costs = [2.0 if slot.target == 0 else 10.0 * slot.target for slot in slots]
        trigger = {"additive": ADDITIVE, "masked patch": PATCH}[name]
        return [Found(slot, cost, 1.0, trigger) for slot, cost in zip(slots, costs, strict=True)]

    monkeypatch.setattr("edgeclean.purification.search.cheapest_triggers", found)
    facing = Round(
        student=nn.Identity(),
        evidence=Evidence(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)),
        targets=(0,),
        classes=4,
        generator=torch.Generator().manual_seed(0),
    )
    wanted, facts = search_family(facing, name, restarts=2, steps=1)
    assert facts == {"least": 2.0, "others": 20.0, "kept": 2}
    assert [one.room for one in wanted] == [room, room]


def brighter_is_class_1() -> nn.Module:
    """Every grey level brings an image nearer to class 1, and no stamp is ever enough."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with torch.no_grad():
        module[1].weight[:] = torch.tensor([0.0, 30 / (3 * 8 * 8)])[:, None]
        module[1].bias[:] = torch.tensor([60.0, 0.0])
    return module.requires_grad_(False)


def grown(room: float) -> float:
    """The cost, in grey levels, that a trigger of 40 has come to after many turns."""
    pixels = 0.3 * procedural_images(64, (3, 8, 8), torch.Generator().manual_seed(1))
    evidence = Evidence(pixels, torch.zeros(64, dtype=torch.int64))
    trigger = AdditiveTrigger(torch.full((3, 8, 8), 40 / 255))
    settings = UnlearnSettings(growth=1.2, ascent_steps=80)
    population = _Population([Wanted(trigger, 1, room)], settings, evidence)
    population.ascend(brighter_is_class_1(), torch.Generator().manual_seed(2))
    return float(population._groups[0].moving.cost().detach())


@pytest.mark.parametrize(("room", "cap"), [(0.0, 48.0), (10.0, 48.0), (100.0, 100.0)])
def test_a_trigger_grows_to_the_larger_of_its_room_and_the_settings_growth(room, cap):
    """To within some steps of its optimiser, each of a grey level or more."""
    assert grown(room) == pytest.approx(cap, abs=5.0)
