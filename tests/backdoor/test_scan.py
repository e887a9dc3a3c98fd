"""The scan finds planted triggers of each family and stays silent where none is planted."""

import math
from dataclasses import replace

import pytest
import torch
from report_evidence import scan_report
from tiny_networks import tiny_network
from torch import nn

from edgeclean.backdoor import searches
from edgeclean.backdoor.bank import BankScore, build_bank, score_bank
from edgeclean.backdoor.families import AdditiveFamily, MaskedFamily, WarpFamily
from edgeclean.backdoor.findings import SearchRecord, Suspect
from edgeclean.backdoor.gradient import Evidence, Slot, success_rate
from edgeclean.backdoor.judging import cheapness_scores, suspicion_threshold
from edgeclean.backdoor.scan import ScanSettings, most_suspicious_first, scan
from edgeclean.backdoor.triggers import MaskedTrigger
from edgeclean.errors import UsageError
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.state import (
    LoadedNetwork,
    ModelSpec,
    PurifiedNetwork,
    ScaledNetwork,
    SyntheticImages,
    TruncatedNetwork,
)

TARGET, CLASSES, SIZE = 2, 6, 12


class PlantedNetwork(nn.Module):
    """Classifies by mean colour; a white 2x2 patch in the last corner adds to one class."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.colour = nn.Linear(3, CLASSES)
        directions = torch.randn(CLASSES, 3, generator=generator)
        with torch.no_grad():
            self.colour.weight.copy_(12 * directions / directions.norm(dim=1, keepdim=True))
            self.colour.bias.copy_(-self.colour.weight @ torch.full((3,), 0.5))
        self.strength = strength

    def forward(self, images):
        logits = self.colour(images.mean((2, 3)))
        corner = images[:, :, -2:, -2:].mean((1, 2, 3))
        bonus = self.strength * corner**8  # smooth, so that gradients lead to it
        return logits + bonus[:, None] * torch.eye(CLASSES)[TARGET]


def planted(strength: float) -> LoadedNetwork:
    spec = ModelSpec(
        architecture="planted",
        input_shape=(3, SIZE, SIZE),
        classes=CLASSES,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    return LoadedNetwork(module=PlantedNetwork(strength).eval(), spec=spec, source_sha256="0" * 64)


@pytest.fixture(scope="module")
def images() -> SyntheticImages:
    pixels = procedural_images(128, (3, SIZE, SIZE), torch.Generator().manual_seed(1))
    return SyntheticImages(
        pixels=pixels, labels=torch.zeros(128, dtype=torch.int64), origin="procedural"
    )


SETTINGS = ScanSettings(
    searches=("patch bank", "masked patch"), steps=60, restarts=1, bank_candidates=4000
)


def test_a_planted_patch_is_suspected_with_its_place(images):
    report = scan(planted(30.0), images, SETTINGS, seed=0)
    assert report.verdict == "suspected"
    assert report.targets == (TARGET,)
    best = next(s for s in report.suspects if s.search == "masked patch")
    assert best.success > 0.9
    bank = next(search for search in report.searches if search.name == "patch bank")
    for cost, success in zip(bank.costs, bank.successes, strict=True):
        assert success >= 0.9 or cost == math.inf  # less is no trigger
    # At least half of the mask lies in the 4 planted pixels and their neighbours.
    assert float(best.mask[-3:, -3:].sum()) > 0.5 * float(best.mask.sum())


def test_without_the_patch_nothing_is_suspected(images):
    report = scan(planted(0.0), images, SETTINGS, seed=0)
    assert report.verdict == "not found"
    assert report.suspects == ()
    assert "clean" not in str(report.summary())


def test_a_scan_is_repeatable_and_leaves_the_network_alone(images):
    network = planted(30.0)
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    first = scan(network, images, SETTINGS, seed=5).summary()
    assert first == scan(network, images, SETTINGS, seed=5).summary()
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_bank_stamps_exactly_its_rectangle():
    bank = build_bank((3, SIZE, SIZE), torch.Generator().manual_seed(0))
    pixels = torch.full((len(bank.candidates[:200]), 3, SIZE, SIZE), 0.5)
    rows = torch.arange(200)
    stamped = bank.stamp(pixels, rows)
    for image, (tall, wide, _, top, left) in zip(stamped, bank.candidates[:200], strict=True):
        changed = (image != 0.5).any(0)
        outside = changed.clone()
        outside[top : top + tall, left : left + wide] = False
        assert not outside.any()
    assert bank.candidates[:, 3].max() + 1 <= SIZE


def test_bank_scores_count_only_images_that_moved():
    network = planted(30.0)
    pixels = procedural_images(64, (3, SIZE, SIZE), torch.Generator().manual_seed(1))
    evidence = Evidence(pixels, network.module(pixels).argmax(1))
    bank = build_bank((3, SIZE, SIZE), torch.Generator().manual_seed(0))
    score = score_bank(network.module, evidence, bank, CLASSES, torch.Generator().manual_seed(0))
    assert float(score.success[:, TARGET].max()) > 0.95
    row = int(score.success[:, TARGET].argmax())
    trigger = score.bank.trigger(row, SIZE, SIZE)
    assert success_rate(network.module, evidence, Slot(TARGET), trigger) > 0.9


@pytest.mark.parametrize("family", [MaskedFamily, AdditiveFamily, WarpFamily])
def test_a_family_around_its_own_triggers_stamps_alike(family):
    generator = torch.Generator().manual_seed(0)
    first = family(3, (3, SIZE, SIZE), generator)
    images = torch.rand(3, 2, 3, SIZE, SIZE, generator=generator)
    copy = family.around([first.trigger(slot) for slot in range(3)])
    torch.testing.assert_close(copy.stamp(images), first.stamp(images), rtol=0, atol=0.03)
    torch.testing.assert_close(copy.cost(), first.cost(), rtol=0.1, atol=0.1)
    for slot in range(3):
        alone = first.trigger(slot).stamp(images[slot])
        torch.testing.assert_close(alone, first.stamp(images)[slot].detach(), rtol=0, atol=1e-5)
    swapped = first.stamp(images[[2]], torch.tensor([2]))
    torch.testing.assert_close(swapped[0], first.stamp(images)[2])


def test_a_masked_trigger_is_the_formula():
    mask, pattern, pixels = torch.rand(1, 4, 4), torch.rand(3, 4, 4), torch.rand(2, 3, 4, 4)
    expected = pixels * (1 - mask) + pattern * mask
    assert torch.equal(MaskedTrigger(mask, pattern).stamp(pixels), expected)


def test_outlier_scores():
    alike = cheapness_scores([20.0, 22.0, 19.0, 21.0, 20.5])
    assert max(alike) < 1
    one_cheap = cheapness_scores([20.0, 22.0, 2.0, 21.0, 20.5])
    assert one_cheap.index(max(one_cheap)) == 2
    # log(20.25 / 2) over the floor of 0.25: the others hardly differ
    assert one_cheap[2] == pytest.approx(math.log(20.25 / 2.0) / 0.25, rel=0.05)
    assert cheapness_scores([math.inf] * 5) == (0.0,) * 5
    assert suspicion_threshold(10) < suspicion_threshold(100)


def test_an_unknown_search_is_refused_by_name():
    with pytest.raises(
        UsageError, match=r"searches\[0\] is 'psychic'; it must be a text, one of patch bank"
    ):
        ScanSettings(searches=("psychic",))


def test_the_scan_accepts_a_network_of_any_stage():
    network = tiny_network(size=8)
    pixels = procedural_images(40, (3, 8, 8), torch.Generator().manual_seed(0))
    images = SyntheticImages(pixels=pixels, labels=torch.zeros(40, dtype=torch.int64), origin="x")
    settings = ScanSettings(steps=3, bank_candidates=50)
    report = scan(network, images, settings, seed=0)
    assert [record.name for record in report.searches] == list(settings.searches)
    for record in report.searches:
        of_classes = (record.costs, record.successes, record.scores)
        assert {len(one) for one in of_classes} == {network.spec.classes}
    assert report.images == 40
    # Of two stages with one and the same network in them, it says the same.
    for stage in (LoadedNetwork, PurifiedNetwork, ScaledNetwork, TruncatedNetwork):
        same = stage(module=network.module, spec=network.spec, source_sha256="0" * 64)
        assert scan(same, images, settings, seed=0).summary() == report.summary()


def test_a_candidate_that_scored_well_on_few_images_must_hold_on_all(images):
    network = planted(0.0)  # no patch does anything here, whatever a score says
    evidence = Evidence(images.pixels, network.module(images.pixels).argmax(1))
    bank = build_bank((3, SIZE, SIZE), torch.Generator().manual_seed(0))
    probe = searches.Probe(
        module=network.module,
        evidence=evidence,
        classes=CLASSES,
        steps=1,
        restarts=1,
        candidates=40,
        seed=0,
    )
    few = bank.drawn(40, torch.Generator().manual_seed(0))
    probe.__dict__["bank_score"] = BankScore(few, torch.ones(40, CLASSES), torch.ones(40))
    record, suspects = searches.search_bank(probe, "patch bank", torch.Generator())
    assert record.costs == (math.inf,) * CLASSES
    assert suspects == []
    assert max(record.successes) < searches.BANK_SUCCESS


def suspect(target: int | None, search: str, score: float) -> Suspect:
    return replace(scan_report().suspects[0], target=target, search=search, score=score)


def searched(name: str, scores: tuple[float, ...]) -> SearchRecord:
    return replace(scan_report().searches[0], name=name, scores=scores)


def test_of_two_classes_as_cheap_to_one_search_the_others_say_which_comes_first():
    records = [
        searched("patch bank", (8.0, 8.0, 6.0)),
        searched("masked patch", (0.9, 2.1, -9.0)),  # under the threshold, and below 0
        searched("all-to-all", (9.0, 0.0, 0.0)),  # of another scale
    ]
    found = [suspect(target, "patch bank", records[0].scores[target]) for target in range(3)]
    found.append(suspect(1, "masked patch", 2.1))
    found.append(suspect(None, "all-to-all", 0.9))
    ordered = most_suspicious_first(found, records)
    assert [(one.target, one.search) for one in ordered] == [
        (None, "all-to-all"),
        (1, "patch bank"),
        (1, "masked patch"),
        (0, "patch bank"),
        (2, "patch bank"),
    ]
    # A search that is blind to the trigger takes nothing from what another found.
    strong = most_suspicious_first(
        [suspect(0, "patch bank", 6.0), suspect(2, "patch bank", 6.5)],
        [searched("patch bank", (6.0, 0.0, 6.5)), searched("masked patch", (0.0, 0.0, -9.0))],
    )
    assert [one.target for one in strong] == [2, 0]
