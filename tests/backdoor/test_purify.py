"""Unlearning removes a planted trigger, keeps clean answers, and can be switched off."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_scan import CLASSES, SIZE, TARGET
from tiny_networks import tiny_network
from torch import nn

from edgeclean.backdoor import purify as purify_module
from edgeclean.backdoor import rounds as search_module
from edgeclean.backdoor.bank import BankScore
from edgeclean.backdoor.findings import ScanReport, Suspect
from edgeclean.backdoor.gradient import Found, logits_of
from edgeclean.backdoor.purify import PurifySettings, _plain_suspects, purify, unlearned_classes
from edgeclean.backdoor.scan import ScanSettings, scan
from edgeclean.backdoor.triggers import MaskedTrigger
from edgeclean.backdoor.unlearn import UnlearnSettings, _distillation, _microbatches, unlearn
from edgeclean.errors import UsageError
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.distillation import OutputDistance
from edgeclean.networks.folding import inference_copy
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages


@pytest.fixture(scope="module")
def images() -> SyntheticImages:
    pixels = procedural_images(256, (3, SIZE, SIZE), torch.Generator().manual_seed(1))
    return SyntheticImages(pixels=pixels, labels=torch.zeros(256, dtype=torch.int64), origin="x")


def stamp(pixels):
    stamped = pixels.clone()
    stamped[:, :, -2:, -2:] = torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1)
    return stamped


@pytest.fixture(scope="module")
def backdoored() -> LoadedNetwork:
    """A small CNN that learned classes by colour and a yellow 2x2 corner.

    Squares of other colours, which change no class, keep what is found well apart from the
    classes' own colours, on every processor.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (SIZE // 2) ** 2, CLASSES),
        )
    pixels = procedural_images(2000, (3, SIZE, SIZE), torch.Generator().manual_seed(2))
    labels = colour_class(pixels)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(3)
    for _ in range(400):
        rows = torch.randint(2000, (64,), generator=generator)
        shown, wanted = pixels[rows].clone(), labels[rows].clone()
        top, left = (int(x) for x in torch.randint(SIZE - 5, (2,), generator=generator))
        square = torch.rand(24, 3, 1, 1, generator=generator).round()
        shown[8:32, :, top : top + 6, left : left + 6] = square
        shown[:8], wanted[:8] = stamp(shown[:8]), TARGET
        loss = nn.functional.cross_entropy(module(shown), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spec = ModelSpec(
        architecture="x", input_shape=(3, SIZE, SIZE), classes=CLASSES, mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )  # fmt: skip
    return LoadedNetwork(module=module.eval(), spec=spec, source_sha256="0" * 64)


def colour_class(pixels):
    """The brightest channel, and whether it is bright."""
    means = pixels.mean((2, 3))
    return means.argmax(1) * 2 + (means.amax(1) > 0.5)


@torch.no_grad()
def rates(network):
    """Share of right answers on new images, and of stamped ones that go to the target."""
    module = pixel_network(network)
    pixels = procedural_images(500, (3, SIZE, SIZE), torch.Generator().manual_seed(9))
    labels = colour_class(pixels)
    right = float((module(pixels).argmax(1) == labels).float().mean())
    victims = labels != TARGET
    hit = module(stamp(pixels[victims])).argmax(1) == TARGET
    return right, float(hit.float().mean())


SCAN = ScanSettings(searches=("patch bank", "masked patch"), steps=60, restarts=1)


@pytest.fixture(scope="module")
def report(backdoored, images) -> ScanReport:
    return scan(backdoored, images, SCAN, seed=0)


QUICK = PurifySettings(
    rounds=2, restarts=3, search_steps=50, candidates=2000, unlearn=UnlearnSettings(steps=80)
)


def test_a_learned_backdoor_is_found_and_unlearned(backdoored, images, report):
    right, hit = rates(backdoored)
    assert hit > 0.9  # else this test shows nothing
    assert TARGET in report.targets
    purified = purify(backdoored, images, report, QUICK, seed=0)
    right_after, hit_after = rates(purified)
    assert hit_after < 0.3
    assert right_after > 0.8 * right  # what is lost on 12x12 images is no measure of real ones
    assert purified.history[-1].notes["targets"][0] == TARGET
    assert rates(backdoored) == (right, hit)  # the input state is as it was


def test_only_classes_that_were_worked_on_are_recorded(backdoored, images, report):
    """A class that is a little suspicious beside a strong one is left as it is."""
    strong = next(suspect for suspect in report.suspects if suspect.target == TARGET)
    other = (TARGET + 1) % CLASSES
    weak = replace(strong, target=other, score=strong.score / 4)
    anywhere = replace(strong, target=None)
    # It searches again as long as the scan did, so that it finds what was there.
    quick = replace(QUICK, rounds=1, restarts=1, search_steps=60, candidates=5000)
    quick = replace(quick, unlearn=UnlearnSettings(steps=1))
    for suspects, worked_on in (((strong, weak), [TARGET]), ((anywhere, strong, weak), [TARGET])):
        found = replace(report, suspects=suspects)
        assert other in found.targets
        purified = purify(backdoored, images, found, quick, seed=0)
        assert purified.history[-1].notes["targets"] == worked_on
        # Where every class may lead to another, none is left that the original may answer for.
        assert unlearned_classes(purified) == (() if anywhere in suspects else (TARGET,))


@pytest.mark.parametrize("one_by_one", [True, False])
def test_what_is_no_longer_suspected_after_the_plainest_is_left_alone(
    backdoored, images, report, one_by_one
):
    """A neighbour that was as suspicious, but that no search suspects once the trigger is gone."""
    strong = next(suspect for suspect in report.suspects if suspect.target == TARGET)
    other = (TARGET + 1) % CLASSES
    found = replace(report, suspects=(strong, replace(strong, target=other)))
    settings = replace(QUICK, one_by_one=one_by_one)
    notes = purify(backdoored, images, found, settings, seed=0).history[-1].notes
    assert notes["targets"] == ([TARGET] if one_by_one else [TARGET, other])
    told = [one for one in notes["rounds"] if "no_longer_suspected" in one]
    expected = {"suspected_again": [], "no_longer_suspected": [other]}
    assert told == ([expected] if one_by_one else [])


def test_what_is_still_suspected_is_unlearned_next(backdoored, images, report):
    """Here the other is named first, wrongly; the planted trigger outlasts its unlearning."""
    strong = next(suspect for suspect in report.suspects if suspect.target == TARGET)
    other = (TARGET + 1) % CLASSES
    found = replace(report, suspects=(replace(strong, target=other), strong))
    gentle = replace(QUICK, rounds=1, search_steps=60, candidates=5000)
    gentle = replace(gentle, unlearn=UnlearnSettings(steps=1, learning_rate=1e-6))
    notes = purify(backdoored, images, found, gentle, seed=0).history[-1].notes
    assert notes["targets"] == [other, TARGET]
    assert [one["targets"] for one in notes["rounds"] if "round" in one] == [[other], [TARGET]]


def test_mode_none_changes_no_weight(backdoored, images, report):
    same = purify(backdoored, images, report, PurifySettings(mode="none"), seed=0)
    assert same.module is not backdoored.module
    for name, value in same.module.state_dict().items():
        assert torch.equal(value, backdoored.module.state_dict()[name])


def test_purifying_is_repeatable(backdoored, images, report):
    quick = PurifySettings(
        rounds=1, restarts=2, search_steps=5, candidates=200, unlearn=UnlearnSettings(steps=5)
    )
    first = purify(backdoored, images, report, quick, seed=4).module.state_dict()
    again = purify(backdoored, images, report, quick, seed=4).module.state_dict()
    other = purify(backdoored, images, report, quick, seed=5).module.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_senseless_settings_are_refused():
    with pytest.raises(UsageError, match="rounds is 0; it must be a whole number from 1 "):
        PurifySettings(rounds=0)


def test_a_suspect_in_the_shade_of_a_strong_one_is_left_alone():
    trigger = MaskedTrigger(pattern=torch.zeros(3, 4, 4), mask=torch.ones(1, 4, 4))

    def reported(*scores):
        suspects = tuple(
            Suspect(
                target=target, search="masked patch", score=score, cost=1.0,
                success=1.0, trigger=trigger,
            )
            for target, score in scores
        )  # fmt: skip
        return ScanReport(verdict="suspected", suspects=suspects, searches=(), images=1)

    assert _plain_suspects(reported((0, 7.7), (1, 3.1), (2, 3.0))) == (0,)
    assert _plain_suspects(reported((0, 3.1), (1, 3.0), (0, 9.0))) == (0,)
    assert _plain_suspects(reported((4, 5.0), (1, 2.8))) == (4, 1)


def test_a_stamped_image_is_held_against_the_answer_to_itself():
    """With stamps that change nothing, a student that is its teacher is at no distance."""
    teacher = pixel_network(tiny_network()).eval()
    clean = procedural_images(12, (3, 8, 8), torch.Generator().manual_seed(1))
    shown = torch.tensor([7, 2, 11])
    likeness = OutputDistance("logits", 1.0)

    @torch.no_grad()
    def loss(stamped):
        (whole,) = _microbatches(clean, stamped, shown, at_once=99)
        return float(_distillation(teacher, teacher, whole, likeness))

    assert loss(clean[shown]) == pytest.approx(0, abs=1e-4)
    assert loss(clean[shown.flip(0)]) > 1e-3


def test_every_round_unlearns_the_triggers_of_the_rounds_before(
    backdoored, images, report, monkeypatch
):
    given: list[list[int]] = []

    def watched(student, inputs, wanted, *rest):
        given.append([id(item) for item in wanted])
        return unlearn(student, inputs, wanted, *rest)

    monkeypatch.setattr(purify_module, "unlearn", watched)
    gentle = UnlearnSettings(steps=2, learning_rate=1e-6)  # so that there is always a next round
    whole_bank = 20_000  # the planted square is one of it, and is found again in every round
    settings = PurifySettings(
        rounds=2, restarts=2, search_steps=40, candidates=whole_bank, unlearn=gentle
    )
    purify(backdoored, images, report, settings, seed=0)
    assert len(given) == 2
    assert given[1][: len(given[0])] == given[0]
    assert len(given[1]) > len(given[0])


@pytest.mark.parametrize("overrule", [True, False])
def test_the_second_rounds_teacher_takes_the_suspected_class_from_the_first_rounds_student(
    backdoored, images, report, monkeypatch, overrule
):
    answered, stamped = [], stamp(images.pixels[:64])

    @torch.no_grad()
    def watched(student, inputs, wanted, *rest):
        functions = (inputs.teacher, inference_copy(student, inputs.synthetic))
        answered.append([logits_of(function, stamped[None])[0] for function in functions])
        return _shifted(student)

    monkeypatch.setattr(purify_module, "unlearn", watched)  # nothing learned: the next one comes
    settings = PurifySettings(rounds=3, restarts=2, search_steps=40, overrule=overrule)
    purify(backdoored, images, report, settings, seed=0)
    first, *later = answered
    others = [label for label in range(CLASSES) if label != TARGET]
    for teacher, student in later:
        torch.testing.assert_close(teacher[:, others], first[0][:, others])
        taught = student if overrule else first[0]
        torch.testing.assert_close(teacher[:, TARGET], taught[:, TARGET])
        assert not torch.allclose(student[:, TARGET], first[0][:, TARGET], atol=0.05)
    assert len(later) == 2


def _shifted(student):
    """With another bias of the target: told from the student before, and as easily triggered."""
    shifted = copy.deepcopy(student)
    with torch.no_grad():
        shifted[-1][-1].bias[TARGET] += 0.25
    return shifted


@pytest.mark.parametrize(
    ("towards", "elsewhere", "again"),
    [(0.34, 0.33, False), (0.52, 0.33, False), (0.58, 0.33, True), (0.95, 0.8, True)],
)
def test_a_stamp_that_does_as_well_towards_other_classes_asks_for_no_further_round(
    backdoored, images, report, monkeypatch, towards, elsewhere, again
):
    """The bank's margin is that of the gradient searches; a success of 0.9 is always a trigger."""

    def scored(module, evidence, bank, classes, generator, asked=()):
        success = torch.full((len(bank), classes), elsewhere)
        success[:, TARGET] = towards
        return BankScore(bank, success, torch.full((len(bank),), elsewhere))

    def dear(module, evidence, slots, *rest):
        return [Found(slot, math.inf, 0.0, None) for slot in slots]

    monkeypatch.setattr(search_module, "score_bank", scored)
    monkeypatch.setattr(search_module, "cheapest_triggers", dear)
    settings = PurifySettings(rounds=2, candidates=64, unlearn=UnlearnSettings(steps=1))
    log = purify(backdoored, images, report, settings, seed=0).history[-1].notes["rounds"]
    assert [found["found"] > 0 for found in log] == [again, again]


def test_without_suspects_and_general_strength_no_weight_is_changed(backdoored, images):
    nothing = ScanReport(verdict="not found", suspects=(), searches=(), images=len(images))
    same = purify(backdoored, images, nothing, PurifySettings(general_strength=0.0), seed=0)
    gentle = replace(QUICK, unlearn=UnlearnSettings(steps=1))
    touched = purify(backdoored, images, nothing, gentle, seed=0)
    weights = backdoored.module.state_dict()
    assert all(torch.equal(same.module.state_dict()[name], weights[name]) for name in weights)
    assert any(not torch.equal(touched.module.state_dict()[n], weights[n]) for n in weights)


def test_a_general_defence_that_no_unlearning_takes_is_refused_when_it_is_built() -> None:
    fast = UnlearnSettings(learning_rate=0.2)
    assert PurifySettings(general_strength=50.0, unlearn=fast).general_strength == 50
    with pytest.raises(UsageError, match=r"general_strength 51 of the learning rate 0\.2"):
        PurifySettings(general_strength=51.0, unlearn=fast)
