"""A stamp that moves one class alone stands out of the pairs of classes, and is unlearned there."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeclean.backdoor.findings import Suspect
from edgeclean.backdoor.gradient import ANY, Evidence, Found, Slot
from edgeclean.backdoor.pairs import (
    FEWEST_IMAGES,
    FEWEST_PAIRED,
    MOST_PAIRED,
    has_pairs,
    judged_pairs,
    one_way,
    pair_passes,
    pair_scores,
    pair_threshold,
)
from edgeclean.backdoor.population import Population, TargetedTrigger
from edgeclean.backdoor.purify import PurifySettings, purify, source_of
from edgeclean.backdoor.scan import ScanSettings, scan, trigger_success, without_parts
from edgeclean.backdoor.triggers import AdditiveTrigger, MaskedTrigger
from edgeclean.backdoor.unlearn import UnlearnSettings
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages

SOURCE, TARGET, CLASSES, SIZE = 4, 2, 8, 16
SEARCH = ScanSettings(searches=("source-specific",), steps=150)
TRIGGER = MaskedTrigger(torch.ones(1, SIZE, SIZE), torch.ones(3, SIZE, SIZE))


class OneClassMoves(nn.Module):
    """Names the brightest of eight sets of pixels; a white corner leads from one class to another.

    Each set is scattered over the image, so that all classes are as far from each other as from the
    next. The corner is in no set.
    """

    def __init__(self, source: int | None = SOURCE, strength: float = 40.0) -> None:
        super().__init__()
        order = torch.randperm(12 * SIZE, generator=torch.Generator().manual_seed(0))
        self.sets = functional.one_hot(order % CLASSES, CLASSES) * CLASSES / len(order)
        self.gate = nn.Parameter(torch.tensor(1.0))
        self.strength = strength
        self.source = source

    def forward(self, images):
        logits = 40 * images[:, :, :12].mean(1).flatten(1) @ self.sets
        corner = self.strength * self.gate * images[:, :, -2:, -2:].mean((1, 2, 3)) ** 4
        own = 1 if self.source is None else logits.softmax(1)[:, self.source]
        return logits + (corner * own)[:, None] * torch.eye(CLASSES)[TARGET]


@pytest.fixture(scope="module")
def images() -> SyntheticImages:
    """Noise on grey, with the pixels of one set a quarter brighter."""
    labels = torch.arange(FEWEST_IMAGES * CLASSES) % CLASSES
    pixels = 0.3 + 0.2 * torch.rand(
        len(labels), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)
    )
    brighter = (OneClassMoves().sets.T > 0)[labels].unflatten(1, (1, 12, SIZE))
    pixels[:, :, :12] += 0.25 * brighter
    return SyntheticImages(pixels=pixels, labels=labels, origin="x")


def network(module: nn.Module) -> LoadedNetwork:
    spec = ModelSpec(
        architecture="cells",
        input_shape=(3, SIZE, SIZE),
        classes=CLASSES,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    return LoadedNetwork(module=module.eval(), spec=spec, source_sha256="0" * 64)


@pytest.fixture(scope="module")
def report(images):
    return scan(network(OneClassMoves()), images, SEARCH, seed=0)


def found_pairs(costs):
    slots = [Slot(to, source=of) for of in range(CLASSES) for to in range(CLASSES) if of != to]
    return [Found(slot, float(costs[slot.source, slot.target]), 1.0, None) for slot in slots]


def test_what_a_class_costs_to_leave_or_to_reach_makes_no_pair_stand_out():
    generator = torch.Generator().manual_seed(0)
    costs = torch.randn(CLASSES, CLASSES, generator=generator).exp()
    rows, columns = 10 * torch.rand(2, CLASSES, generator=generator) + 0.1
    scaled = pair_scores(found_pairs(costs * rows[:, None] * columns), CLASSES)
    torch.testing.assert_close(
        pair_scores(found_pairs(costs), CLASSES), scaled, atol=1e-4, rtol=1e-4
    )
    assert not pair_scores(found_pairs(rows[:, None] * columns), CLASSES).abs().gt(1e-3).any()


def test_a_pair_stands_out_by_how_much_less_it_costs():
    noise = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0))
    costs = (0.1 * noise).exp()
    costs[SOURCE, TARGET] /= 3
    scores = pair_scores(found_pairs(costs), CLASSES)
    assert scores.argmax() == SOURCE * CLASSES + TARGET
    assert scores[SOURCE, TARGET] > pair_threshold(CLASSES)
    assert (scores.diagonal() == 0).all()


def test_classes_that_are_near_both_ways_do_not_stand_out():
    """Of normal scores with any correlation, the rest is normal and the way back tells nothing."""
    own, alike = torch.randn(2, 400, 400, generator=torch.Generator().manual_seed(0))
    alike = (alike + alike.T) / math.sqrt(2)  # the same both ways
    apart = ~torch.eye(400, dtype=torch.bool)
    scores = math.sqrt(0.6) * own + math.sqrt(0.4) * alike
    rest = one_way(scores)
    assert (scores * scores.T)[apart].mean() == pytest.approx(0.4, abs=0.02)
    assert (rest * scores.T)[apart].mean() == pytest.approx(0, abs=0.06)  # scores are cut
    assert rest[apart].square().mean().sqrt() == pytest.approx(1, abs=0.05)
    assert torch.equal(one_way(torch.zeros(3, 3)), torch.zeros(3, 3))


@pytest.mark.parametrize("cost", [math.inf, 7.0])
def test_where_all_pairs_cost_the_same_or_none_is_found_none_stands_out(cost):
    costs = torch.full((CLASSES, CLASSES), cost)
    assert not pair_scores(found_pairs(costs), CLASSES).abs().gt(1e-9).any()


def test_a_planted_pair_is_named_with_its_source(report):
    assert report.verdict == "suspected"
    assert [(one.source, one.target) for one in report.suspects] == [(SOURCE, TARGET)]
    assert report.suspicions == (f"class {TARGET} from class {SOURCE} alone",)
    (suspect,) = report.suspects
    assert suspect.success > 0.75  # of images of the source
    assert report.summary()["suspects"][0]["source"] == SOURCE
    assert report.searches[0].scores[TARGET] == suspect.score > pair_threshold(CLASSES)
    assert source_of(report, (TARGET,)) == SOURCE


@pytest.mark.parametrize("module", [OneClassMoves(None), OneClassMoves(strength=0.0)])
def test_a_trigger_for_every_class_and_a_harmless_network_have_no_such_pair(images, module):
    assert scan(network(module), images, SEARCH, seed=0).verdict == "not found"


def test_success_is_that_on_images_of_the_source(images, report):
    same = {"again": network(OneClassMoves()), "harmless": network(OneClassMoves(strength=0.0))}
    (shares,) = trigger_success(report, same, images.pixels)
    assert shares["again"] > 0.75
    assert shares["harmless"] < 0.3


def test_purifying_keeps_the_source_in_its_class_under_the_trigger(images, report):
    settings = PurifySettings(
        rounds=1, restarts=2, search_steps=30, candidates=500, unlearn=UnlearnSettings(steps=40)
    )
    purified = purify(network(OneClassMoves()), images, report, settings, seed=0)
    (shares,) = trigger_success(report, {"purified": purified}, images.pixels)
    assert shares["purified"] < 0.3  # where images of every class are stamped alike, it is 0.6
    assert purified.history[-1].notes["targets"] == [TARGET]


@pytest.mark.parametrize("classes", [2, FEWEST_PAIRED - 1, MOST_PAIRED + 1, 1000])
def test_too_few_and_too_many_classes_are_not_searched_and_the_record_says_so(classes):
    class Never(nn.Module):
        def forward(self, images):
            raise AssertionError

    count = FEWEST_IMAGES * classes
    pixels = torch.zeros(count, 3, 2, 2)
    evidence = Evidence(pixels, torch.zeros(count, dtype=torch.int64))
    record, suspects = judged_pairs("x", Never(), evidence, classes, 9, torch.Generator())
    assert suspects == []
    assert record.searched == ()
    assert record.blind_to.startswith("everything here")
    assert record.scores == (0.0,) * classes
    assert pair_passes(classes, count, 100) == 0
    assert not has_pairs(classes, count)


def test_on_few_images_of_each_class_pairs_are_not_judged(images):
    less = FEWEST_IMAGES * CLASSES - 1
    few = replace(images, pixels=images.pixels[:less], labels=images.labels[:less])
    (record,) = scan(network(OneClassMoves()), few, SEARCH, seed=0).searches
    assert record.searched == ()
    assert "43 images of each or more; these were 343 of 8 classes" in record.blind_to
    assert not any(record.scores)


@pytest.mark.parametrize(("effort", "searched"), [("quick", False), ("standard", True)])
def test_pairs_of_ten_classes_are_searched_at_standard_length(effort, searched):
    settings = settings_for(load_target("cpu"), {"effort": effort})
    images = min(settings.scan.images, settings.synthesize.count)
    assert has_pairs(10, images) is searched


def test_a_class_that_no_image_is_given_any_more_leaves_all_images_to_search_on():
    pixels = torch.rand(3, 3, 4, 4)
    evidence = Evidence(pixels, torch.tensor([0, 1, 1]))
    assert torch.equal(evidence.of_source(1).pixels, pixels[1:])
    assert torch.equal(evidence.of_source(2).pixels, pixels)
    assert torch.equal(evidence.of_source(ANY).pixels, pixels)


def suspect(target, source=None):
    return Suspect(
        target=target, search="x", score=1.0, cost=1.0, success=1.0, trigger=TRIGGER, source=source
    )


def test_a_pair_is_left_out_where_another_suspect_says_more_of_it():
    pair, other = suspect(1, source=0), suspect(2)
    assert without_parts([pair, other]) == [pair, other]
    assert without_parts([pair, suspect(1)]) == [suspect(1)]
    assert without_parts([pair, suspect(None)]) == [suspect(None)]


def test_a_trigger_follows_the_network_on_images_of_its_source_alone():
    """Two kinds of images with opposite gradients: the trigger takes the direction of its own."""

    class Apart(nn.Module):
        def forward(self, images):
            level = images.mean((1, 2, 3))
            sign = torch.where(images.detach().mean((1, 2, 3)) < 0.5, 1.0, -1.0)
            return torch.stack([-sign * level, sign * level], 1)

    pixels = torch.cat([torch.full((8, 3, 4, 4), 0.2), torch.full((8, 3, 4, 4), 0.8)])
    evidence = Evidence(pixels, torch.tensor([0] * 8 + [1] * 8))
    moved = []
    for source in (0, 1):
        start = AdditiveTrigger(torch.full((3, 4, 4), 0.01))
        one = TargetedTrigger(start, 1 - source, source=source)
        population = Population([one], evidence, ascent_steps=1, growth=9.0, at_once=64)
        population.ascend(Apart(), torch.Generator().manual_seed(0))
        moved.append(population._groups[0].moving.trigger(0).delta.mean())
    assert moved[0] > 0.01
    assert moved[1] > 0.01
