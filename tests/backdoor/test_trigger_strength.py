"""How strongly an additive trigger is unlearned: up to what the other classes' cost."""

import math

import pytest
import torch
from torch import nn

from edgeclean.backdoor.findings import ScanReport, SearchRecord, Suspect
from edgeclean.backdoor.gradient import ELSEWHERE, Evidence, Found
from edgeclean.backdoor.population import Population, TargetedTrigger, _strengthened
from edgeclean.backdoor.rounds import SearchContext, family_triggers_of_round, triggers_of_scan
from edgeclean.backdoor.triggers import AdditiveTrigger, MaskedTrigger

ADDITIVE = AdditiveTrigger(torch.full((3, 8, 8), 2 / 255))
DARKER = AdditiveTrigger(-ADDITIVE.delta)
PATCH = MaskedTrigger(mask=torch.eye(8)[None], pattern=torch.zeros(3, 8, 8))


def suspect(target, search, trigger):
    return Suspect(target=target, search=search, score=9.0, cost=1.0, success=1.0, trigger=trigger)


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


def test_the_scans_own_trigger_is_strengthened_to_what_the_other_classes_cost():
    """The median is of the unsuspected classes that were reached: of 4, 8 and 30, not of 1 or 2."""
    found = [suspect(0, "additive", ADDITIVE), suspect(1, "additive", ADDITIVE)]
    report = reported(found, [record("additive", 1.0, 2.0, 4.0, math.inf, 30.0, 8.0)])
    assert [one.strongest for one in triggers_of_scan(report, (0, 1))] == [8.0, 8.0]
    alone = triggers_of_scan(report, (0,))  # class 1 is an ordinary one then
    assert [(one.target, one.strongest) for one in alone] == [(0, 6.0)]


@pytest.mark.parametrize(
    ("target", "search", "trigger", "costs"),
    [
        (0, "masked patch", PATCH, (1.0, 40.0, 50.0)),  # a larger mask is another trigger
        (0, "patch bank", PATCH, (1.0, 40.0, 50.0)),
        (0, "warp", PATCH, (1.0, 2.0, 3.0)),  # an image changed twice as much is no larger warp
        (0, "additive", ADDITIVE, (0.5, 0.4, 0.6)),  # it costs more than the others' do
        (None, "all-to-all", ADDITIVE, (3.0, 3.0, 3.0)),
        (0, "additive", ADDITIVE, (1.0, math.inf, math.inf)),  # nothing to compare with
    ],
)
def test_other_triggers_are_stamped_as_they_were_found(target, search, trigger, costs):
    report = reported([suspect(target, search, trigger)], [record(search, *costs)])
    goal = ELSEWHERE if target is None else target
    assert triggers_of_scan(report, (goal,)) == [TargetedTrigger(trigger, goal, 1.0)]


@pytest.mark.parametrize(("name", "strongest"), [("additive", 10.0), ("masked patch", 1.0)])
def test_a_rounds_own_triggers_are_held_against_its_own_search(monkeypatch, name, strongest):
    def found(module, evidence, slots, *rest):
        costs = [2.0 if slot.target == 0 else 10.0 * slot.target for slot in slots]
        trigger = {"additive": ADDITIVE, "masked patch": PATCH}[name]
        return [Found(slot, cost, 1.0, trigger) for slot, cost in zip(slots, costs, strict=True)]

    monkeypatch.setattr("edgeclean.backdoor.rounds.cheapest_triggers", found)
    context = SearchContext(
        student=nn.Identity(),
        evidence=Evidence(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)),
        targets=(0,),
        classes=4,
        generator=torch.Generator().manual_seed(0),
    )
    wanted, facts = family_triggers_of_round(context, name, restarts=2, steps=1)
    assert facts == {"least": 2.0, "others": 20.0, "kept": 2}
    assert [one.strongest for one in wanted] == [strongest, strongest]


def differences(strongest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """How many times its own two grey levels each stamp changes an image by.

    Of a trigger that may be as strong as asked, and of one beside it that may not; of 600 images.
    """
    pixels = torch.full((600, 3, 8, 8), 0.5)
    evidence = Evidence(pixels[:8], torch.zeros(8, dtype=torch.int64))
    wanted = [TargetedTrigger(DARKER, 1), TargetedTrigger(ADDITIVE, 1, strongest)]
    population = Population(wanted, evidence, ascent_steps=0, growth=1.2, at_once=99)
    stamped = population.stamp(pixels, torch.Generator().manual_seed(1))
    # The median of the pixels: some are left out by the roughening.
    changed = (stamped - pixels).flatten(1).quantile(0.5, dim=1) * 255 / 2
    return changed[changed > 0], -changed[changed < 0]


def test_stamps_are_as_strong_as_found_up_to_their_strongest():
    """Roughening moves half of them by some 15 % more, so the ends are soft."""
    for plain in (*differences(1.0), differences(5.0)[1]):
        assert 230 < len(plain) < 370
        assert 0.4 < float(plain.min()) < float(plain.max()) < 1.6
    strong, _ = differences(5.0)
    assert float(strong.max()) < 5 * 1.6
    assert float(strong.mean()) == pytest.approx(3.0, abs=0.3)
    quarters = [((low <= strong) & (strong < low + 1)).float().mean() for low in (1, 2, 3, 4)]
    assert min(quarters) > 0.15  # less what is roughened out of them


def test_without_anything_to_strengthen_no_draw_is_made():
    """So a network without such a trigger is purified, bit for bit, as if there were none."""
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    clean, stamped = torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8) / 4
    same = _strengthened(clean, stamped, torch.ones(4), generator)
    assert torch.equal(same, stamped)
    assert torch.equal(generator.get_state(), before)
    _strengthened(clean, stamped, torch.tensor([1.0, 1.0, 2.0, 1.0]), generator)
    assert not torch.equal(generator.get_state(), before)
