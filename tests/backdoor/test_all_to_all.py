"""A stamp that sends every class to another is told by its map of classes, and unlearned."""

import math

import pytest
import torch
from test_scan import CLASSES, SETTINGS, SIZE, planted
from torch import nn
from torch.nn import functional

from edgeclean.backdoor.all_to_all import MAP_SCORE, bank_stamps, class_map
from edgeclean.backdoor.bank import build_bank, score_bank
from edgeclean.backdoor.gradient import ELSEWHERE, Evidence, arrived, class_loss
from edgeclean.backdoor.purify import PurifySettings, purify
from edgeclean.backdoor.scan import ScanSettings, scan
from edgeclean.backdoor.unlearn import UnlearnSettings
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages

SEARCH = ScanSettings(searches=("all-to-all",), steps=60)


class Rolled(nn.Module):
    """Classifies by mean colour; a white 2x2 corner rolls the classes by one."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = planted(0.0).module

    def forward(self, images):
        logits = self.plain(images)
        corner = images[:, :, -2:, -2:].mean((1, 2, 3))
        share = (corner**8)[:, None]  # smooth, so that gradients lead to it
        return (1 - share) * logits + share * logits.roll(1, 1)


@pytest.fixture(scope="module")
def images() -> SyntheticImages:
    pixels = procedural_images(192, (3, SIZE, SIZE), torch.Generator().manual_seed(1))
    return SyntheticImages(pixels=pixels, labels=torch.zeros(192, dtype=torch.int64), origin="x")


def network(module: nn.Module) -> LoadedNetwork:
    return LoadedNetwork(module=module.eval(), spec=planted(0.0).spec, source_sha256="0" * 64)


def test_the_map_of_a_permutation_scores_one_and_of_a_funnel_next_to_nothing():
    own = torch.arange(CLASSES).repeat(10)
    assert class_map(own, (own + 1) % CLASSES, CLASSES).score == pytest.approx(1.0)
    funnel = class_map(own, torch.full_like(own, 3), CLASSES)
    # Class 3 itself moves nowhere: five shares of 1, one destination and that of class 3.
    assert funnel.score == pytest.approx(5 / 6 * funnel.different)
    assert funnel.different <= 2 / CLASSES
    assert class_map(own, own, CLASSES).score == 0
    assert class_map(own[:2], own[:2] + 1, CLASSES).score == 0  # too few images to say anything


def test_the_map_counts_how_much_of_a_class_moves_together():
    own = torch.zeros(10, dtype=torch.int64)
    given = torch.tensor([1] * 6 + [2] * 3 + [0])
    assert class_map(own, given, CLASSES).shares[0] == pytest.approx(5 / 9)  # five confirm one


def test_elsewhere_is_the_log_of_all_other_classes():
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(2, 7, CLASSES, generator=generator)
    own = torch.randint(CLASSES, (2, 7), generator=generator)
    targets = torch.tensor([ELSEWHERE, 4])
    loss = class_loss(logits, targets, own)
    kept = logits[0].softmax(1).gather(1, own[0][:, None])[:, 0]
    torch.testing.assert_close(loss[0], -torch.log1p(-kept), rtol=1e-4, atol=1e-5)
    toward = functional.cross_entropy(logits[1], torch.full((7,), 4), reduction="none")
    torch.testing.assert_close(loss[1], toward)
    assert torch.equal(arrived(logits, targets, own)[0], logits[0].argmax(1) != own[0])
    assert torch.equal(arrived(logits, targets, own)[1], logits[1].argmax(1) == 4)


def test_a_planted_roll_is_suspected_as_one_map_and_no_class_is_blamed(images):
    report = scan(network(Rolled()), images, SEARCH, seed=0)
    assert report.verdict == "suspected"
    assert [suspect.target for suspect in report.suspects] == [None]
    assert report.targets == ()
    assert report.suspicions == ("every class to another (all-to-all)",)
    assert report.suspects[0].score > MAP_SCORE
    assert report.summary()["suspects"][0]["target"] is None


@pytest.mark.parametrize("strength", [0.0, 30.0])
def test_without_a_roll_no_map_is_suspected(images, strength):
    assert scan(planted(strength), images, SEARCH, seed=0).verdict == "not found"


class Swapped(nn.Module):
    """Dark images are of class 0, others of class 1, a light dot anywhere turns that round.

    No image is ever of the other classes.
    """

    def forward(self, images):
        side = images.mean((1, 2, 3)) - 0.3
        dot = (images.amax((1, 2, 3)) > 0.9).float()
        first = side * (2 * dot - 1)
        return torch.stack([first, -first, *[torch.full_like(first, -9.0)] * (CLASSES - 2)], 1)


@pytest.mark.parametrize("dark", [32, 60])
def test_moved_is_the_share_that_goes_anywhere(dark):
    """However unevenly the images lie in the classes: here in two of six."""
    levels = torch.full((64, 1, 1, 1), 0.5)
    levels[:dark] = 0.1
    pixels = levels.expand(64, 3, SIZE, SIZE).contiguous()
    evidence = Evidence(pixels, Swapped()(pixels).argmax(1))
    assert evidence.predictions.bincount().tolist() == [dark, 64 - dark]
    bank = build_bank((3, SIZE, SIZE), torch.Generator().manual_seed(0))
    score = score_bank(Swapped(), evidence, bank, CLASSES, torch.Generator().manual_seed(0))
    small = score.bank.candidates[:, 0] * score.bank.candidates[:, 1] == 4
    assert score.moved.max() == 1  # every image, and no more
    assert score.moved.min() >= 0
    assert small.any()
    assert all(0 <= found.success <= 1 for found in bank_stamps(evidence, score))


class Learned(nn.Module):
    """A network with weights to unlearn: colours, and whether the corner is white."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = planted(0.0).module.colour
        self.gate = nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        logits = self.plain(images.mean((2, 3)))
        corner = images[:, :, -2:, -2:].mean((1, 2, 3))
        share = (self.gate * corner**8)[:, None]
        return (1 - share) * logits + share * logits.roll(1, 1)


def test_purifying_lets_images_keep_their_class_under_the_stamp(images):
    rolled = network(Learned())
    report = scan(rolled, images, SEARCH, seed=0)
    assert report.suspects
    settings = PurifySettings(
        rounds=2, restarts=2, search_steps=40, unlearn=UnlearnSettings(steps=60, learning_rate=0.1)
    )
    purified = purify(rolled, images, report, settings, seed=0)
    stamped = images.pixels.clone()
    stamped[:, :, -2:, -2:] = 1.0
    with torch.no_grad():
        own = rolled.module(images.pixels).argmax(1)
        before = (rolled.module(stamped).argmax(1) != own).float().mean()
        after = (purified.module(stamped).argmax(1) != own).float().mean()
    assert before > 0.8
    assert after < 0.4


def test_the_searches_of_one_target_and_of_a_map_stand_side_by_side(images):
    both = ScanSettings(searches=(*SETTINGS.searches, "all-to-all"), steps=60, bank_candidates=2000)
    report = scan(planted(30.0), images, both, seed=0)
    assert [record.name for record in report.searches] == [*both.searches]
    assert all(len(record.scores) == CLASSES for record in report.searches)
    assert None not in [suspect.target for suspect in report.suspects]


def test_images_too_small_for_a_bank_of_stamps_have_none():
    """The searches by candidates find nothing there, and say so; purification does without."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(3, CLASSES)).eval()
    spec = ModelSpec(
        architecture="x", input_shape=(3, 1, 1), classes=CLASSES, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    network = LoadedNetwork(module=module, spec=spec, source_sha256="0" * 64)
    pixels = torch.rand(64, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    dots = SyntheticImages(pixels=pixels, labels=torch.zeros(64, dtype=torch.int64), origin="x")
    report = scan(network, dots, ScanSettings(searches=("patch bank",), steps=2), seed=0)
    assert report.verdict == "not found"
    assert all(math.isinf(cost) for cost in report.searches[0].costs)
    evidence = Evidence(pixels, module(pixels).argmax(1))
    assert bank_stamps(evidence, None) == []
