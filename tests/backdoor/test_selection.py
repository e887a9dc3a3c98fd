"""Of many classes, those that the network names are searched, and a random few beside them."""

import math
from statistics import median

import pytest
import torch
from test_scan import SIZE
from torch import nn

from edgeclean.backdoor import searches
from edgeclean.backdoor.all_to_all import MAP_SCORE, class_map
from edgeclean.backdoor.bank import IN_FULL, Bank, BankScore, build_bank, leaders, score_bank
from edgeclean.backdoor.families import MaskedFamily
from edgeclean.backdoor.gradient import (
    TOGETHER,
    Evidence,
    Slot,
    class_loss,
    sink_of,
    success_of,
    success_rate,
)
from edgeclean.backdoor.judging import cheapness_scores, suspicion_threshold
from edgeclean.backdoor.scan import ScanSettings, scan
from edgeclean.backdoor.selection import (
    LAST_LAYER,
    MOST_NAMED,
    Selection,
    heaviest_classes,
    scores_against,
    selection,
    sinks_of,
    sinks_of_bank,
)
from edgeclean.backdoor.triggers import MaskedTrigger
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.effort import LEVELS
from edgeclean.estimate import PassSeconds, parts_of
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages
from edgeclean.stage_results import from_bytes, to_bytes

MANY, TARGET = 200, 137


class Many(nn.Module):
    """Classifies by colour among many classes; a white corner leads to one of them."""

    def __init__(self, strength: float, power: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(MANY, 3, generator=generator)
        directions = 12 * directions / directions.norm(dim=1, keepdim=True)
        self.colour = nn.Linear(3, MANY)
        with torch.no_grad():
            self.colour.weight.copy_(directions)
            self.colour.bias.copy_(-directions @ torch.full((3,), 0.5))
        self.strength, self.power = strength, power

    def forward(self, images):
        logits = self.colour(images.mean((2, 3)))
        corner = images[:, :, -2:, -2:].mean((1, 2, 3)) ** self.power
        bonus = torch.zeros_like(logits)
        bonus[:, TARGET] = self.strength * (corner - 0.7**self.power)
        return logits + bonus


def many(strength: float) -> LoadedNetwork:
    spec = ModelSpec(
        architecture="many",
        input_shape=(3, SIZE, SIZE),
        classes=MANY,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    return LoadedNetwork(module=Many(strength).eval(), spec=spec, source_sha256="0" * 64)


@pytest.fixture(scope="module")
def images() -> SyntheticImages:
    pixels = procedural_images(128, (3, SIZE, SIZE), torch.Generator().manual_seed(1))
    return SyntheticImages(pixels=pixels, labels=torch.zeros(128, dtype=torch.int64), origin="x")


def evidence_of(module: nn.Module, images: SyntheticImages) -> Evidence:
    with torch.no_grad():
        return Evidence(images.pixels, module(images.pixels).argmax(1))


SETTINGS = ScanSettings(
    searches=("patch bank", "masked patch"), steps=60, restarts=1, bank_candidates=4000
)


def test_among_two_hundred_classes_the_one_with_a_patch_is_named_and_suspected(images):
    report = scan(many(30.0), images, SETTINGS, seed=0)
    assert report.targets == (TARGET,)
    assert {suspect.search for suspect in report.suspects} == {"patch bank", "masked patch"}
    chosen = report.selection
    assert chosen is not None
    assert TARGET in [one.target for one in chosen.named]
    bank, masked = report.searches
    assert bank.searched is None  # it sees every class
    assert masked.searched == chosen.searched
    written = report.summary()
    for column in ("costs", "successes", "scores"):
        known = [c for c, value in enumerate(written["searches"][1][column]) if value is not None]
        assert set(known) <= set(chosen.searched)  # what was not searched has no number
    assert f"{len(chosen.searched)} of the 200 classes" in written["selection"]["says"]
    assert masked.in_words == "masked patch (12 of 200 classes)"
    assert from_bytes(to_bytes(report)).summary() == written  # as a resumed run reads it


def test_among_two_hundred_classes_without_a_patch_none_is_suspected(images):
    report = scan(many(0.0), images, SETTINGS, seed=0)
    assert report.verdict == "not found"
    assert report.selection is not None


def test_the_selection_follows_from_the_seed(images):
    settings = ScanSettings(searches=("masked patch",), steps=5, restarts=1)
    chosen = [scan(many(0.0), images, settings, seed=seed).selection for seed in (3, 3, 4)]
    assert chosen[0] == chosen[1]
    assert chosen[0].drawn != chosen[2].drawn


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 11, 12])
def test_up_to_twelve_classes_all_are_searched_and_none_is_named(classes):
    chosen = selection({"x": [classes - 1]}, classes, torch.Generator())
    assert chosen.is_whole
    assert chosen.named == ()
    assert chosen.searched == tuple(range(classes))


@pytest.mark.parametrize("classes", [13, 43, 100, 1000])
def test_of_more_classes_the_named_are_searched_and_enough_others_to_compare_with(classes):
    generator = torch.Generator().manual_seed(classes)
    for _ in range(50):
        lengths = torch.randint(0, 5, (4,), generator=generator).tolist()
        named = {
            f"search {index}": torch.randperm(classes, generator=generator)[:length].tolist()
            for index, length in enumerate(lengths)
        }
        chosen = selection(named, classes, generator)
        assert len(chosen.searched) == IN_FULL
        assert len(chosen.drawn) >= IN_FULL - MOST_NAMED >= 8
        targets = [one.target for one in chosen.named]
        assert not set(targets) & set(chosen.drawn)
        assert {first for first, *_ in filter(None, named.values())} <= set(targets)  # every first
        assert all(one.target in named[by] for one in chosen.named for by in one.by)
        assert not chosen.is_whole


def test_later_choices_come_after_every_first():
    chosen = selection({"a": [1, 2, 3], "b": [4, 5], "c": [1, 6]}, 100, torch.Generator())
    assert [one.target for one in chosen.named] == [1, 4, 2, 5]
    assert chosen.named[0].by == ("a", "c")


@pytest.mark.parametrize("level", LEVELS)
def test_a_hundred_classes_cost_half_as_much_again_as_ten_at_most_and_a_thousand_twice(level):
    settings = settings_for(load_target("cpu"), {"effort": level})
    each = PassSeconds(forward=1.0, images=2.5, weights=3.5, layers=20)
    times = {
        classes: sum(part.seconds for part in parts_of(settings, classes, each, only_scan=True))
        for classes in (10, 100, 1000)
    }
    assert times[100] <= 1.5 * times[10]
    assert times[1000] <= 2 * times[10]


def test_no_search_asks_gradients_for_more_than_twelve_classes(images, monkeypatch):
    asked, real = [], searches.cheapest_triggers

    def counted(module, evidence, slots, *rest):
        asked.append({slot.target for slot in slots})
        return real(module, evidence, slots, *rest)

    monkeypatch.setattr(searches, "cheapest_triggers", counted)
    settings = ScanSettings(searches=("masked patch", "additive", "warp"), steps=2, restarts=3)
    report = scan(many(0.0), images, settings, seed=0)
    assert len(asked) == 9
    assert all(len(targets) <= IN_FULL for targets in asked)
    assert set.union(*asked) == set(report.selection.searched)


def test_stamps_of_the_bank_are_scored_for_every_class_at_once_as_for_each_alone(images):
    module = Many(30.0)
    evidence = evidence_of(module, images)
    bank = build_bank((3, SIZE, SIZE), torch.Generator().manual_seed(0))
    score = score_bank(module, evidence, bank, MANY, torch.Generator().manual_seed(0))
    # The best candidate of the target, and that of the class reached best beside it.
    for target in (
        TARGET,
        int(score.success.amax(0).index_fill(0, torch.tensor(TARGET), -1).argmax()),
    ):
        row = int(score.success[:, target].argmax())
        trigger = score.bank.trigger(row, SIZE, SIZE)
        alone = success_rate(module, evidence, Slot(target), trigger)
        assert alone == pytest.approx(float(score.success[row, target]), abs=0.25)
    with torch.no_grad():
        row = int(score.success[:, TARGET].argmax())
        stamped = score.bank.trigger(row, SIZE, SIZE).stamp(images.pixels)
        given = module(stamped).argmax(1)
    assert float((given == TARGET).float().mean()) > 0.9


def test_of_many_classes_no_more_candidates_go_on_than_of_twelve():
    generator = torch.Generator().manual_seed(0)
    count, keep = 3000, 64
    bank = Bank(torch.zeros(1, 3, 9, 9), torch.ones(count, 5, dtype=torch.int64))
    for classes in (13, 43, 1000):
        success = (torch.rand(count, classes, generator=generator) < 0.01).float() * 0.5
        success[:, 3] = 0.9  # any stamp leads there
        success[7, classes - 1] = 1.0  # one alone does
        score = BankScore(bank, success, success.sum(1))
        kept = leaders(score, keep)
        assert keep < int(kept.sum()) <= keep * (IN_FULL + 1)
        assert kept[7]
        success[11, 5], success[:, 5] = 0.1, 0.0
        success[11, 5] = 0.1
        assert leaders(BankScore(bank, success, success.sum(1)), keep, asked=[5])[11]


def test_together_asks_for_one_class_whichever():
    own, targets = torch.zeros(1, 4, dtype=torch.int64), torch.tensor([TOGETHER])

    def loss(*destinations):
        logits = torch.zeros(1, 4, 6)
        for image, target in enumerate(destinations):
            logits[0, image, target] = 20.0
        moved = [target for target in destinations if target != 0]
        most = max(set(moved), key=moved.count) if moved else None
        if most is not None:
            share = destinations.count(most) / len(destinations)
            assert float(success_of(logits, targets, own)) == pytest.approx(share)
        return float(class_loss(logits, targets, own).mean())

    assert loss(2, 2, 2, 2) == pytest.approx(0, abs=1e-3)
    assert loss(4, 4, 4, 4) == pytest.approx(0, abs=1e-3)
    assert loss(2, 2, 2, 0) == pytest.approx(math.log(4 / 3), abs=1e-2)
    assert loss(2, 2, 2, 2) < loss(2, 2, 2, 4) < loss(2, 2, 4, 4) < loss(2, 3, 4, 5)
    assert loss(0, 0, 0, 0) > loss(2, 3, 4, 5)  # the class that they have is no destination


def test_together_has_a_gradient_where_no_image_moves():
    logits = torch.zeros(2, 3, 5)
    logits[:, :, 1] = 200.0
    logits.requires_grad_()
    own = torch.ones(2, 3, dtype=torch.int64)
    loss = class_loss(logits, torch.tensor([TOGETHER, 2]), own)
    loss.sum().backward()
    assert bool(loss.isfinite().all())
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad[0].abs().sum()) > 0


def test_images_that_were_of_the_sink_before_are_no_success_of_a_stamp():
    own = torch.tensor([[3, 3, 3, 0, 1]])
    logits = torch.zeros(1, 5, 4)
    logits[0, :, 3] = 9.0
    logits[0, 4, 3], logits[0, 4, 1] = 0.0, 9.0
    assert float(success_of(logits, torch.tensor([TOGETHER]), own)) == 0.5

    class Third(nn.Module):
        def forward(self, images):
            return torch.eye(4)[torch.full((len(images),), 3)]

    pixels = torch.zeros(5, 3, 4, 4)
    trigger = MaskedTrigger(torch.zeros(1, 4, 4), torch.zeros(3, 4, 4))
    moved = success_rate(Third(), Evidence(pixels, own[0]), Slot(TOGETHER), trigger)
    assert moved == 1.0  # both of the others
    still = Evidence(pixels, torch.full((5,), 3))
    assert success_rate(Third(), still, Slot(TOGETHER), trigger) == 0.0


def test_the_sink_of_a_stamp_is_where_most_images_left_for():
    own = torch.tensor([1, 1, 2, 3, 4])
    assert sink_of(own, torch.tensor([1, 4, 4, 4, 4])) == 4  # the last was there before
    assert sink_of(own, own) == -1


def test_stamps_that_send_images_together_name_the_class_of_the_patch(images):
    module = Many(30.0, power=2).requires_grad_(False)  # gradients lead to it from afar,
    module.colour.weight.data *= 0.2  # and colours to none
    module.colour.bias.data *= 0.2
    generator = torch.Generator().manual_seed(0)
    sinks = sinks_of(module, evidence_of(module, images), MANY, MaskedFamily, 100, generator)
    assert sinks[0] == TARGET
    assert len(set(sinks)) == len(sinks)


def test_the_bank_names_first_whom_the_smallest_working_candidate_leads_to():
    candidates = torch.ones(3, 5, dtype=torch.int64)
    candidates[:, 0] = torch.tensor([9, 4, 4])
    success = torch.zeros(3, 20)
    success[0, 6], success[1, 8], success[2, 9], success[1, 2] = 1.0, 0.95, 1.0, 0.6
    score = BankScore(Bank(torch.zeros(1, 3, 9, 9), candidates), success, success.sum(1))
    assert sinks_of_bank(score) == [9, 8, 6, 2]


def test_the_last_layer_names_the_classes_of_its_largest_weights():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 30), nn.Linear(30, 20))
    with torch.no_grad():
        module[3].weight[11] *= 50
    assert heaviest_classes(module, 20)[0] == 11
    assert heaviest_classes(nn.Flatten(), 20) == []
    assert LAST_LAYER == "last layer"


def test_a_class_is_scored_against_the_drawn_ones_alone():
    costs = {0: 2.0, 1: 2.1, 2: 1.9, **{target: 20.0 + target for target in range(10, 17)}}
    scores = scores_against(costs, range(10, 17), 0.25)
    expected = math.log(median(20.0 + target for target in range(10, 17)) / 2.0) / 0.25
    assert scores[0] == pytest.approx(expected, rel=0.01)  # its like among the named change nothing
    assert all(scores[target] < 1 for target in range(10, 17))
    unreached = scores_against({0: 5.0, **dict.fromkeys(range(1, 9), math.inf)}, range(1, 9), 0.25)
    assert unreached[0] == 0  # all count as the largest that was found


def test_chance_suspects_a_named_class_no_oftener_than_one_of_ten_that_are_all_searched():
    """Even where the named are the cheapest of all, and costs scatter far more than the floor."""
    generator, tries = torch.Generator().manual_seed(0), 1000
    of_ten = of_many = 0
    for _ in range(tries):
        ten = torch.randn(10, generator=generator).exp().tolist()
        of_ten += max(cheapness_scores(ten)) > suspicion_threshold(10)
        whole = torch.randn(1000, generator=generator)
        cheapest = whole.topk(MOST_NAMED, largest=False).values
        drawn = whole[torch.randperm(1000, generator=generator)[: IN_FULL - MOST_NAMED]]
        costs = dict(enumerate(torch.cat([cheapest, drawn]).exp().tolist()))
        scores = scores_against(costs, range(MOST_NAMED, IN_FULL), 0.25)
        of_many += max(scores.values()) > suspicion_threshold(1000)
    assert of_many <= of_ten


def test_with_many_classes_a_few_are_no_map():
    """Whatever they do: two classes that go to one sink would be half of a permutation."""
    own = torch.tensor([0] * 3 + [1] * 3 + list(range(2, 40)))
    assert class_map(own, torch.full_like(own, 50), 1000).score == 0
    nine, ten = (torch.arange(count).repeat_interleave(3) for count in (9, 10))
    assert class_map(nine, nine + 20, 1000).score == 0
    assert class_map(ten, ten + 20, 1000).score == 1
    assert class_map(ten, torch.full_like(ten, 50), 1000).score < MAP_SCORE


def test_images_that_scatter_are_no_map_however_few_a_class_has():
    own = torch.arange(40).repeat_interleave(3)
    scattered = torch.arange(len(own)) + 100  # no two go to one class
    found = class_map(own, scattered, 1000)
    assert found.different == 1
    assert found.score == 0


def test_a_map_of_many_classes_is_not_searched_where_each_has_too_few_images(images, monkeypatch):
    module = many(0.0)
    few = SyntheticImages(pixels=images.pixels[:6], labels=images.labels[:6], origin="x")
    monkeypatch.setattr(searches, "stamps_of", None)  # it would fail
    report = scan(module, few, ScanSettings(searches=("all-to-all",)), seed=0)
    assert report.searches[0].searched == ()
    assert report.verdict == "not found"
    assert report.summary()["searches"][0]["scores"] == [None] * MANY
    assert report.searches[0].in_words == "all-to-all (0 of 200 classes)"


def test_a_selection_says_what_was_not_searched():
    chosen = selection({"patch bank": [7]}, 1000, torch.Generator().manual_seed(0))
    assert "12 of the 1,000 classes" in chosen.in_words
    assert "The other 988 were not searched by gradients" in chosen.in_words
    assert "7 by patch bank" in chosen.in_words
    assert "not" not in Selection.of_all(10).in_words
