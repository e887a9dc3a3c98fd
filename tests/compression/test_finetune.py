"""Distillation brings a damaged student back to its teacher, on images of neither's training."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_networks import tiny_network
from torch import nn

from edgeclean.compression.finetune import (
    FinetuneSettings,
    finetune,
    photographs_seen,
    share_of_crops,
    times_taught,
)
from edgeclean.compression.judge import Judge
from edgeclean.errors import UsageError
from edgeclean.images.batchnorm import reestimate_batchnorm_
from edgeclean.images.crops import cropped, draw_crops
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.cost import count_macs
from edgeclean.networks.features import Features
from edgeclean.networks.pixels import pixel_copy, pixel_network
from edgeclean.networks.resized import Resized
from edgeclean.networks.state import SyntheticImages

SETTINGS = FinetuneSettings(steps=60, batch_size=32, learning_rate=2e-2, photograph_share=0.0)


@pytest.fixture(scope="module")
def images() -> SyntheticImages:
    pixels = procedural_images(128, (3, 8, 8), torch.Generator().manual_seed(1))
    return SyntheticImages(pixels=pixels, labels=torch.zeros(128, dtype=torch.int64), origin="x")


def damaged(teacher):
    module = copy.deepcopy(teacher.module)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                size = layer.weight.std()
                layer.weight += 0.5 * size * torch.randn(layer.weight.shape, generator=generator)
    return replace(teacher, module=module)


@torch.no_grad()
def distance(first, second):
    pixels = procedural_images(100, (3, 8, 8), torch.Generator().manual_seed(8))
    one, two = pixel_network(first)(pixels), pixel_network(second)(pixels)
    return float((one - two).square().mean())


def test_the_student_comes_back_to_its_teacher(images):
    teacher = tiny_network()
    student = damaged(teacher)
    before = distance(student, teacher)
    tuned = finetune(student, teacher, images, replace(SETTINGS, reestimate=False), seed=0)
    assert distance(tuned, teacher) < 0.5 * before
    assert distance(student, teacher) == before
    notes = tuned.history[-1].notes
    assert notes["loss_last"] < notes["loss_first"]


def test_a_channel_that_died_is_not_woken(images):
    """Its BatchNorm multiplies it by hundreds, as an EfficientNet's do, and so all that it learns.

    A student of its own teacher, but for a little, has nothing to learn there.
    """
    teacher = tiny_network()
    conv, norm = teacher.module[0], teacher.module[1]
    with torch.no_grad():
        conv.weight[:4] *= 1e-9
        norm.running_mean[:4], norm.running_var[:4] = 0.0, 0.0
    student = copy.deepcopy(teacher.module)
    with torch.no_grad():
        student[0].weight[4:] *= 1.01
    student = replace(teacher, module=student)
    tuned = finetune(student, teacher, images, FinetuneSettings(steps=30, batch_size=32), seed=0)
    assert distance(tuned, teacher) < distance(student, teacher)


def test_finetuning_is_repeatable(images):
    teacher = tiny_network()
    student, few = damaged(teacher), replace(SETTINGS, steps=4)
    first = finetune(student, teacher, images, few, seed=0).module.state_dict()
    again = finetune(student, teacher, images, few, seed=0).module.state_dict()
    other = finetune(student, teacher, images, few, seed=1).module.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_no_steps_only_reestimate_batchnorm(images):
    teacher = tiny_network()
    tuned = finetune(teacher, teacher, images, replace(SETTINGS, steps=0, reestimate=True), seed=0)
    for name, value in tuned.module.state_dict().items():
        same = torch.equal(value, teacher.module.state_dict()[name])
        assert same != (name.endswith(("running_mean", "running_var", "num_batches_tracked")))


def test_a_network_without_batchnorm_is_tuned_too(images):
    teacher = tiny_network(nn.Identity())
    teacher.module[1] = nn.Identity()
    student = damaged(teacher)
    tuned = finetune(student, teacher, images, SETTINGS, seed=0)
    assert distance(tuned, teacher) < 0.5 * distance(student, teacher)


def test_senseless_settings_are_refused():
    with pytest.raises(UsageError, match=r"adversarial_share is 2"):
        FinetuneSettings(adversarial_share=2.0)
    with pytest.raises(UsageError, match="set feature_weight and photograph_share to 0"):
        FinetuneSettings(compare="labels")


def test_labels_teach_what_the_teacher_does_not(images):
    """The deck's tuning: with labels that no network gave, the student learns them all the same."""
    teacher = tiny_network()
    labels = (images.pixels[:, 0].mean((1, 2)) > images.pixels[:, 2].mean((1, 2))).long()
    labelled = replace(images, labels=labels)
    settings = replace(
        SETTINGS, compare="labels", feature_weight=0.0, steps=150, learning_rate=1e-2
    )
    tuned = finetune(teacher, teacher, labelled, settings, seed=0)

    def right(network):
        with torch.no_grad():
            return float((pixel_network(network)(images.pixels).argmax(1) == labels).float().mean())

    assert right(tuned) > right(teacher) + 0.3


def test_features_bring_the_inside_of_the_student_back(images):
    """Of two students of one lesson, the one that is shown features is nearer inside."""
    teacher = tiny_network()
    student = damaged(teacher)
    name = "3.first_norm"

    def inside(network):
        with Features(network.module, [name]) as kept, torch.no_grad():
            network.module(images.pixels)
            return kept.take()[name]

    def distance_inside(network):
        return float((inside(network) - inside(teacher)).square().mean())

    plain = finetune(student, teacher, images, replace(SETTINGS, feature_weight=0.0), seed=0)
    guided = finetune(student, teacher, images, replace(SETTINGS, feature_weight=3.0), seed=0)
    assert distance_inside(guided) < 0.7 * distance_inside(plain)


def of_crops(seed):
    return cropped(draw_crops(128, (3, 8, 8), torch.Generator().manual_seed(seed)), (3, 8, 8))


def far_by(deviations):
    """A function of pixels that learned from images so many deviations away from crops."""
    function = pixel_copy(tiny_network())
    reestimate_batchnorm_(function, of_crops(3))
    for layer in function.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += deviations * layer.running_var.sqrt()
            layer.eval()
    return function


def test_crops_weigh_less_the_further_they_lie_from_what_the_network_learned_from():
    settings = FinetuneSettings(photograph_share=0.5)

    def share(function):
        return share_of_crops(function, (3, 8, 8), settings, torch.Generator().manual_seed(1))

    moves = (0.0, 0.5, 1.0, 4.0)
    shares, distances = zip(*(share(far_by(one)) for one in moves), strict=True)
    assert distances[0] < 0.1
    assert shares[0] == pytest.approx(0.5 / (1 + distances[0]), abs=1e-4)
    assert list(shares) == sorted(shares, reverse=True)
    assert shares[-1] < 0.2 * shares[0]
    plain = pixel_copy(tiny_network(nn.Identity()))
    plain[1][1] = nn.Identity()
    assert share(plain) == (0.5, None), "nothing is known of what it learned from"
    for beyond in (1e25, float("nan")):
        assert share(far_by(beyond)) == (0.0, None)
    none = FinetuneSettings(photograph_share=0.0)
    assert share_of_crops(far_by(0.0), (3, 8, 8), none, torch.Generator()) == (0.0, None)


def test_crops_teach_what_the_synthetic_images_do_not_hold(images):
    """Of two students who see little but grey, the one that sees crops answers others better."""
    teacher, student = tiny_network(), damaged(tiny_network())
    grey = replace(images, pixels=torch.full_like(images.pixels, 0.5))

    @torch.no_grad()
    def left(share):
        settings = FinetuneSettings(steps=200, batch_size=32, photograph_share=share)
        with torch.enable_grad():
            tuned = finetune(student, teacher, grey, settings, seed=0)
        own, given = (pixel_network(one)(of_crops(9)) for one in (tuned, teacher))
        return tuned, float((own - given).square().mean())

    (taught, with_crops), (untaught, without) = left(1.0), left(0.0)
    assert with_crops < 0.7 * without
    seen = photographs_seen(taught)
    assert seen["count"] == 10
    assert seen["share"] == pytest.approx(1 / (1 + seen["distance"]), abs=1e-3)
    assert photographs_seen(untaught) is None
    settings = FinetuneSettings(steps=0)
    assert photographs_seen(finetune(student, teacher, grey, settings, seed=0)) is None


def with_bias(network, column, shift):
    """A copy that gives one class so much more."""
    module = copy.deepcopy(network.module)
    with torch.no_grad():
        [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1].bias[column] += (
            shift
        )
    return replace(network, module=module)


def test_the_network_as_it_came_answers_for_all_but_the_unlearned_classes(images):
    teacher = tiny_network()
    original = with_bias(with_bias(teacher, 0, 2.0), 1, 2.0)

    def taught(overrule, unlearned):
        settings = replace(SETTINGS, overrule=overrule, feature_weight=0.0, optimizer="adam")
        asked = {"seed": 0, "original": original, "unlearned": unlearned}
        return finetune(damaged(teacher), teacher, images, settings, **asked)

    def raised(network):
        with torch.no_grad():
            difference = pixel_network(network)(images.pixels) - pixel_network(teacher)(
                images.pixels
            )
        return difference.mean(0)[:3].round().tolist()

    assert raised(taught(True, (1,))) == [2.0, 0.0, 0.0]
    assert raised(taught(True, (0, 1))) == [0.0, 0.0, 0.0]
    assert raised(taught(False, ())) == [0.0, 0.0, 0.0]
    plain = finetune(damaged(teacher), teacher, images, SETTINGS, seed=0).module.state_dict()
    asked = {"seed": 0, "original": original, "unlearned": (1,)}
    off = replace(SETTINGS, overrule=False)
    same = finetune(damaged(teacher), teacher, images, off, **asked).module.state_dict()
    assert all(torch.equal(plain[name], same[name]) for name in plain)


@pytest.mark.parametrize(("share", "kept"), [(0.003, True), (0.9, False)])
def test_what_moved_answers_for_other_images_away_from_the_teachers_is_not_kept(
    images, share, kept
):
    teacher, student = tiny_network(), damaged(tiny_network())
    settings = replace(SETTINGS, learning_rate=share)
    tuned = finetune(student, teacher, images, settings, seed=0)
    judge = Judge.of(teacher)
    assert judge.change(tuned.module) <= judge.change(student.module)
    assert tuned.history[-1].notes["kept"] is kept
    same = [
        torch.equal(one, other)
        for one, other in zip(tuned.module.parameters(), student.module.parameters(), strict=True)
    ]
    assert all(same) is not kept


def test_the_judge_that_is_given_decides(images):
    teacher, student = tiny_network(), damaged(tiny_network())
    settings = replace(SETTINGS, learning_rate=0.003)
    satisfied = Judge.on(student, Judge.of(teacher).images)  # with the student as it is
    for judge, kept in ((Judge.of(teacher), True), (satisfied, False)):
        tuned = finetune(student, teacher, images, settings, seed=0, judge=judge)
        assert tuned.history[-1].notes["kept"] is kept


def seeing(network, size):
    return replace(network, module=Resized(network.module, size))


def test_a_network_is_taught_longer_the_smaller_it_is(images):
    """As long as the settings say down to half the size, from there on r - 1 times as long."""
    teacher = tiny_network(channels=16)
    students = [tiny_network(channels=channels) for channels in (16, 12, 8, 6, 4, 2, 1)]
    whole, *left = (count_macs(one.module, (3, 8, 8)) for one in (teacher, *students))
    times = [times_taught(one, teacher) for one in students]
    for taught, macs in zip(times, left, strict=True):
        assert taught == pytest.approx(min(4, max(1, (whole - macs) / macs)))
    assert 1 == times[1] < times[3] < times[-1] == 4, "both bounds and what lies between are tried"
    third = students[3]
    settings = replace(SETTINGS, steps=10, feature_weight=0.0)
    tuned = finetune(third, teacher, images, settings, seed=0)
    assert tuned.history[-1].notes["steps"] == round(10 * times[3])


def test_a_network_is_taught_as_much_as_ranks_took(images):
    """What pixels lost does not come back, and costs answers where it is taught nevertheless."""
    teacher = tiny_network(size=8)
    assert times_taught(teacher, teacher) == 1
    half = seeing(teacher, (4, 4))
    assert times_taught(half, teacher) == 0
    assert times_taught(half, half) == 1, "the teacher sees no more than it"
    thin = copy.deepcopy(half)
    thin.module.network[3].chain[1] = nn.Conv2d(4, 4, 1)
    shares = []
    for size in ((7, 7), (5, 5)):
        thin.module.resize.size = size
        left, before = (count_macs(one.module, (3, 8, 8)) for one in (thin, teacher))
        smaller = count_macs(teacher.module, (3, *size))
        shares.append(times_taught(thin, teacher))
        assert shares[-1] == pytest.approx((1 - left / smaller) / (1 - left / before))
    assert 0 < shares[1] < shares[0] < 1
    tuned = finetune(half, teacher, images, SETTINGS, seed=0)
    assert tuned.history[-1].notes["steps"] == 0
    for one, other in zip(tuned.module.parameters(), half.module.parameters(), strict=True):
        assert torch.equal(one, other)
