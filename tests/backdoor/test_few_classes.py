"""Two and three classes: a planted trigger is named, and without one nothing is suspected."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgeclean.backdoor.all_to_all import MAP_SCORE, class_map
from edgeclean.backdoor.families import MaskedFamily
from edgeclean.backdoor.few_classes import (
    FEW_THRESHOLD,
    as_cheap_as_one_way,
    few_class_scores,
    single_image_costs,
)
from edgeclean.backdoor.gradient import (
    ELSEWHERE,
    Evidence,
    Found,
    GradientSettings,
    Slot,
    cheapest_triggers,
)
from edgeclean.backdoor.judging import SPREAD_FLOOR
from edgeclean.backdoor.scan import ScanSettings, scan
from edgeclean.backdoor.triggers import AdditiveTrigger, MaskedTrigger
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages

SIZE, PATCH = 16, 3
SETTINGS = ScanSettings(
    searches=("patch bank", "masked patch", "all-to-all"),
    steps=50,
    restarts=1,
    bank_candidates=200,
)


class Coloured(nn.Module):
    """Tells images apart by their mean colour; a white corner leads to a class, or rolls them."""

    def __init__(self, classes: int, does: str) -> None:
        super().__init__()
        angles = 2 * math.pi * torch.arange(classes) / classes
        spread = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
        spread = spread / spread.norm(dim=1, keepdim=True)
        directions = torch.stack([angles.cos(), angles.sin()], 1) @ spread
        self.register_buffer("directions", 15 * directions)
        self.does = does

    def forward(self, images):
        logits = (images.mean((2, 3)) - 0.5) @ self.directions.T
        corner = images[:, :, -PATCH:, -PATCH:].mean((1, 2, 3))
        share = (corner**4)[:, None]  # smooth, so that gradients lead to it
        if self.does == "leads":
            return logits + 60 * share * torch.eye(logits.shape[1])[1]
        if self.does == "rolls":
            return (1 - share) * logits + share * logits.roll(1, 1)
        return logits


def scanned(classes: int, does: str, seed: int = 0):
    shape = (3, SIZE, SIZE)
    pixels = 0.9 * procedural_images(96, shape, torch.Generator().manual_seed(seed + 1))
    images = SyntheticImages(pixels=pixels, labels=torch.zeros(96, dtype=torch.int64), origin="x")
    spec = ModelSpec(
        architecture="x", input_shape=shape, classes=classes, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    module = Coloured(classes, does).eval()
    return scan(
        LoadedNetwork(module=module, spec=spec, source_sha256="0" * 64),
        images,
        SETTINGS,
        seed=seed,
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_the_class_of_a_planted_patch_is_named_and_nothing_without_it(classes):
    report = scanned(classes, "leads")
    assert report.targets == (1,)
    assert None not in [suspect.target for suspect in report.suspects]
    assert "masked patch" in [suspect.search for suspect in report.suspects]
    quiet = scanned(classes, "nothing")
    assert quiet.verdict == "not found"
    assert quiet.suspects == ()


def test_a_planted_swap_of_two_classes_is_suspected_as_one():
    report = scanned(2, "rolls")
    assert None in [suspect.target for suspect in report.suspects]


def test_a_stamp_that_moves_one_class_of_two_is_no_map():
    own = torch.tensor([0] * 20 + [1] * 20)
    assert class_map(own, torch.ones_like(own), 2).score == 0  # it was 0.5, the threshold itself
    assert class_map(own, 1 - own, 2).score == 1


@given(st.lists(st.tuples(*[st.integers(0, 10)] * 3), min_size=2, max_size=3))
def test_a_map_of_few_classes_passes_only_where_every_class_moves(moves):
    """By up to ten images of each class to each class."""
    classes = len(moves)
    own, given_classes = [], []
    for source, counts in enumerate(moves):
        for destination, count in enumerate(counts[:classes]):
            own += [source] * count
            given_classes += [destination] * count
    found = class_map(
        torch.tensor(own, dtype=torch.int64),
        torch.tensor(given_classes, dtype=torch.int64),
        classes,
    )
    most = [
        max(count for to, count in enumerate(counts[:classes]) if to != source)
        / max(1, sum(counts[:classes]))
        for source, counts in enumerate(moves)
    ]
    if found.score >= MAP_SCORE:
        assert min(most) >= MAP_SCORE
        assert found.different > 0.5


@given(
    costs=st.lists(st.floats(0.01, 1e4), min_size=2, max_size=3),
    seed=st.integers(0, 99),
    unit=st.floats(0.1, 100),
)
def test_the_scores_of_few_classes_have_no_unit_and_pass_where_a_stamp_is_cheap(costs, seed, unit):
    generator = torch.Generator().manual_seed(seed)
    alone = (0.1 + 100 * torch.rand(len(costs), generator=generator)).tolist()
    scores = few_class_scores(costs, alone, SPREAD_FLOOR)
    in_unit = few_class_scores(
        [unit * cost for cost in costs], [unit * one for one in alone], SPREAD_FLOOR
    )
    assert in_unit == pytest.approx(scores, abs=1e-6)
    for target, (cost, score) in enumerate(zip(costs, scores, strict=True)):
        others = min(
            math.sqrt(costs[other] * alone[other]) for other in range(len(costs)) if other != target
        )
        if abs(score - FEW_THRESHOLD) > 1e-6:
            assert (score > FEW_THRESHOLD) == (
                cost < others * math.exp(-SPREAD_FLOOR * FEW_THRESHOLD)
            )


def test_without_a_trigger_or_a_yardstick_there_is_no_score():
    assert few_class_scores([math.inf, 3.0], [5.0, math.inf], 0.25)[0] == 0
    assert few_class_scores([math.inf, 3.0], [6.0, 1.0], 0.25)[1] == 0
    assert few_class_scores([3.0, 3.0], [math.inf, math.inf], 0.25) == (0.0, 0.0)


def test_a_slot_of_one_image_uses_it_alone_and_only_to_another_class():
    evidence = Evidence(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 1, 0]))
    assert evidence.usable(Slot(0, image=2)).tolist() == [False, False, True, False]
    assert not evidence.usable(Slot(1, image=2)).any()


def test_a_stamp_for_both_ways_must_not_cost_more_than_one_for_each():
    shape = (3, SIZE, SIZE)
    pixels = procedural_images(32, shape, torch.Generator().manual_seed(1))
    module = Coloured(2, "nothing").requires_grad_(False)
    evidence = Evidence(pixels, module(pixels).argmax(1))
    whole = MaskedTrigger(torch.ones(1, SIZE, SIZE), torch.ones(shape))
    added = AdditiveTrigger(torch.ones(shape))
    dear, cheap = (
        [Found(Slot(ELSEWHERE), cost, 1.0, trigger) for trigger in (whole, added)]
        for cost in (2.1 * SIZE**2, 0.5)
    )
    kept = as_cheap_as_one_way(
        module, evidence, dear + cheap, 2, 80, torch.Generator().manual_seed(0)
    )
    assert kept == cheap


def test_single_images_are_cheaper_than_all_of_them_together():
    shape = (3, SIZE, SIZE)
    pixels = procedural_images(48, shape, torch.Generator().manual_seed(1))
    module = Coloured(2, "nothing").requires_grad_(False)
    evidence = Evidence(pixels, module(pixels).argmax(1))
    generator = torch.Generator().manual_seed(0)
    alone = single_image_costs(module, evidence, 2, MaskedFamily, 40, generator)
    slots, asked = [Slot(0), Slot(1)], GradientSettings(steps=40)
    together = cheapest_triggers(module, evidence, slots, MaskedFamily, asked, generator)
    assert all(one < found.cost for one, found in zip(alone, together, strict=True))
    none = Evidence(pixels[:4], torch.zeros(4, dtype=torch.int64))
    only = single_image_costs(module, none, 2, MaskedFamily, 2, generator)
    assert only[0] == math.inf  # every image is of class 0 already
