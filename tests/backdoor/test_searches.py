"""One search of a scan at a time: which classes it tries again, and how it judges what it found."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from edgeclean.backdoor import searches
from edgeclean.backdoor.families import AdditiveFamily, WarpFamily
from edgeclean.backdoor.gradient import Evidence, Found, GradientSettings, Slot
from edgeclean.backdoor.judging import suspicion_threshold
from edgeclean.images.procedural import procedural_images


def test_later_starts_search_the_cheapest_classes_again_and_every_class_keeps_its_best(monkeypatch):
    asked, real = [], searches.cheapest_triggers

    def counted(module, evidence, slots, *rest):
        asked.append([slot.target for slot in slots])
        return real(module, evidence, slots, *rest)

    monkeypatch.setattr(searches, "cheapest_triggers", counted)
    classes, pixels = 48, procedural_images(96, (3, 6, 6), torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(108, classes)).requires_grad_(False)
    probe = searches.Probe(
        module=module,
        evidence=Evidence(pixels, module(pixels).argmax(1)),
        classes=classes,
        steps=12,
        restarts=3,
        candidates=10,
        seed=0,
    )
    record, _ = searches.search_family(probe, "additive", torch.Generator().manual_seed(0))
    assert asked[0] == list(range(classes))
    assert [len(targets) for targets in asked[1:]] == [12, 12]
    first = real(
        probe.module,
        probe.evidence,
        [Slot(target) for target in range(classes)],
        AdditiveFamily,
        searches.GradientSettings(steps=12),
        torch.Generator().manual_seed(0),
    )
    assert all(cost <= found.cost for cost, found in zip(record.costs, first, strict=True))
    cheapest = sorted(range(classes), key=lambda target: first[target].cost)[:12]
    assert asked[1] == sorted(cheapest)


@pytest.mark.parametrize(
    ("successes", "reached", "suspected"),
    [
        ((0.93, 0.1, 0.4, 0.05, 0.3, 0.2), (0,), [0]),  # alone, and the others far from it
        ((0.96, 0.93, 0.4, 0.05, 0.3, 0.2), (0, 1), [0, 1]),
        ((0.96, 0.88, 0.7, 0.8, 0.6, 0.9), (0,), []),  # the others nearly as well
        ((0.5, 0.02, 0.01, 0.02, 0.01, 0.02), (), []),  # far ahead, but no trigger
    ],
)
def test_where_fewer_than_three_classes_are_reached_their_misses_are_judged(
    monkeypatch, successes, reached, suspected
):
    trigger = WarpFamily(1, (3, 6, 6), torch.Generator()).trigger(0)

    def as_told(module, evidence, slots, *rest):
        return [
            Found(
                slot,
                0.7 if slot.target in reached else math.inf,
                successes[slot.target],
                trigger if slot.target in reached else None,
            )
            for slot in slots
        ]

    monkeypatch.setattr(searches, "cheapest_triggers", as_told)
    pixels, classes = torch.zeros(4, 3, 6, 6), len(successes)
    probe = searches.Probe(
        module=nn.Identity(),
        evidence=Evidence(pixels, torch.zeros(4, dtype=torch.int64)),
        classes=classes,
        steps=1,
        restarts=1,
        candidates=1,
        seed=0,
    )
    record, suspects = searches.search_family(probe, "warp", torch.Generator())
    assert [suspect.target for suspect in suspects] == suspected
    assert record.threshold == 2 * suspicion_threshold(classes)
    assert all(record.scores[target] == 0 for target in set(range(classes)) - set(reached))


class Ramps(nn.Module):
    """Each class but the last rises along a direction of its own; all images are of the last."""

    def __init__(self, gains):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        directions = torch.linalg.qr(torch.randn(108, len(gains), generator=draw))[0].T
        self.weight = nn.Parameter(directions * torch.tensor(gains)[:, None], requires_grad=False)

    def forward(self, images):
        rising = (images.flatten(1) - 0.5) @ self.weight.T
        return torch.cat([rising, torch.full((len(images), 1), 3.0)], 1)


@pytest.mark.parametrize(
    ("gain", "steps", "suspected"),
    [
        (5.5, 24, []),  # 24 steps reach it alone, and more of them the others at nearly its cost
        (16.0, 15, [0]),  # those cost far more
        (16.0, 4, []),  # nothing is reached at first, so nothing is searched on
    ],
)
def test_a_class_that_the_steps_just_sufficed_for_is_compared_by_what_more_of_them_reach(
    gain, steps, suspected
):
    module = Ramps([gain] + [4.0] * 6)
    draw = torch.Generator().manual_seed(1)
    pixels = torch.full((64, 3, 6, 6), 0.5) + 0.02 * torch.randn(64, 3, 6, 6, generator=draw)
    probe = searches.Probe(
        module=module,
        evidence=Evidence(pixels, module(pixels).argmax(1)),
        classes=8,
        steps=steps,
        restarts=1,
        candidates=1,
        seed=0,
    )
    first = searches.cheapest_triggers(
        module,
        probe.evidence,
        [Slot(target) for target in range(8)],
        AdditiveFamily,
        GradientSettings(steps=steps),
        torch.Generator().manual_seed(0),
    )
    alone = [found.slot.target for found in first if math.isfinite(found.cost)]
    assert alone == ([0] if steps > 4 else [])
    record, suspects = searches.search_family(probe, "additive", torch.Generator().manual_seed(0))
    assert [suspect.target for suspect in suspects] == suspected
    reached = sum(math.isfinite(cost) for cost in record.costs)
    assert reached == (4 if steps > 4 else 0)
    assert record.threshold == (1 if steps > 4 else 2) * suspicion_threshold(8)


def test_a_search_in_vain_says_how_far_it_came():
    class Bright(nn.Module):
        def forward(self, images):
            light = 50 * (images.mean((1, 2, 3)) - 0.5)
            return torch.stack([-light, light], 1)

    pixels = torch.full((64, 3, 4, 4), 0.4)
    pixels[32:] = 0.0  # these a small delta does not make bright
    evidence, settings = Evidence(pixels, torch.zeros(64, dtype=torch.int64)), GradientSettings()
    (found,) = searches.cheapest_triggers(
        Bright(),
        evidence,
        [Slot(1)],
        AdditiveFamily,
        replace(settings, steps=40),
        torch.Generator().manual_seed(0),
    )
    assert (found.cost, found.trigger) == (math.inf, None)
    assert 0.4 < found.success < 0.75
