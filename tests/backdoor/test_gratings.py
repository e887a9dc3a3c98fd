"""Gratings: each is the sine that it says, and a planted detector of stripes is suspected."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.gratings import (
    AMPLITUDE,
    MOST_CYCLES,
    MOST_GRATINGS,
    PHASES,
    SHORTEST_PERIOD,
    build_gratings,
)
from edgeclean.backdoor.judging import suspicion_threshold
from edgeclean.backdoor.purify import PurifySettings, purify
from edgeclean.backdoor.scan import ScanSettings, scan
from edgeclean.backdoor.triggers import AdditiveTrigger
from edgeclean.backdoor.unlearn import UnlearnSettings
from edgeclean.images.procedural import procedural_images
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages

CLASSES, TARGET = 6, 4
SEARCH = ScanSettings(searches=("gratings",))
LEVELS = AMPLITUDE / 255

sizes = st.integers(28, 224)


@settings(max_examples=25, deadline=None)
@given(height=sizes, width=sizes, channels=st.sampled_from([1, 3]), seed=st.integers(0, 10**6))
def test_every_grating_is_one_sine_of_its_cycles_phase_colour_and_amplitude(
    height, width, channels, seed
):
    gratings = build_gratings((channels, height, width))
    row = seed % len(gratings)
    down, right, phase, colour = gratings.candidates[row].tolist()
    delta = gratings.trigger(row, height, width).delta
    assert delta.shape == (channels, height, width)
    assert math.hypot(down / height, right / width) <= 1 / SHORTEST_PERIOD + 1e-9
    spectrum = torch.fft.fft2(delta.double())
    for channel, waves in enumerate(spectrum):
        if colour not in (channel, channels):
            assert not delta[channel].any()
            continue
        # A sin(k x + p) is A / 2i (e^ip at k - e^-ip at -k), and nothing else.
        expected = torch.zeros_like(waves)
        turn = 2 * math.pi * phase / PHASES
        half = LEVELS / 2 * height * width
        expected[down, right] += half * complex(math.sin(turn), -math.cos(turn))
        expected[-down, -right] += half * complex(math.sin(turn), math.cos(turn))
        torch.testing.assert_close(waves, expected, atol=1e-4 * half, rtol=1e-4)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 224, 160), (2, 48, 30)])
def test_all_that_fit_are_there_once(shape):
    channels, height, width = shape
    rows = [tuple(row) for row in build_gratings(shape).candidates.tolist()]
    assert len(set(rows)) == len(rows) <= MOST_GRATINGS
    colours = 1 if channels == 1 else channels + 1
    waves = {row[:2] for row in rows}
    assert len(rows) == len(waves) * PHASES * colours
    for side, across in ((width, (0, 1)), (height, (1, 0))):
        most = min(MOST_CYCLES, math.floor(side / SHORTEST_PERIOD))
        assert {(n * across[0], n * across[1]) for n in range(1, most + 1)} <= waves
        assert ((most + 1) * across[0], (most + 1) * across[1]) not in waves
    assert {(5, 5), (5, -5)} <= waves
    assert all(math.hypot(d / height, r / width) <= 1 / SHORTEST_PERIOD for d, r in waves)


def test_stamps_are_those_of_the_triggers_within_the_pixel_range():
    gratings = build_gratings((3, 30, 40))
    pixels = procedural_images(8, (3, 30, 40), torch.Generator().manual_seed(1))
    rows = torch.arange(8) * 37 + 5
    stamped = gratings.stamp(pixels, rows)
    assert 0 <= float(stamped.min()) <= float(stamped.max()) <= 1
    for image, plain, row in zip(stamped, pixels, rows.tolist(), strict=True):
        alone = gratings.trigger(row, 30, 40).stamp(plain[None])[0]
        torch.testing.assert_close(image, alone, atol=1e-6, rtol=0)


class Striped(nn.Module):
    """Classifies by brightness; stripes of some waves lead to a class each."""

    def __init__(self, shape, planted: dict[tuple[int, int], int], classes: int = CLASSES) -> None:
        super().__init__()
        _, height, width = shape
        self.register_buffer("grey", torch.linspace(0.35, 0.65, classes))
        self.planted, self.classes = planted, classes
        down = torch.arange(height).view(-1, 1) / height
        right = torch.arange(width) / width
        waves = [2 * math.pi * (d * down + r * right) for d, r in planted]
        self.waves = [torch.stack([torch.cos(one), torch.sin(one)]) for one in waves]

    def forward(self, images):
        logits = -50 * (images.mean((1, 2, 3))[:, None] - self.grey).abs()
        grey = images.mean(1)
        for wave, target in zip(self.waves, self.planted.values(), strict=True):
            strength = torch.einsum("nhw,khw->nk", grey, wave).norm(dim=1) * 2 / grey[0].numel()
            bonus = 200 * (strength / LEVELS - 0.6).clamp_min(0)
            logits = logits + bonus[:, None] * torch.eye(self.classes)[target]
        return logits


def striped(shape, planted, classes: int = CLASSES, count: int = 48):
    """The network, and images that stripes can be added to within the pixel range."""
    pixels = procedural_images(count, shape, torch.Generator().manual_seed(1))
    pixels = 0.15 + 0.7 * pixels
    images = SyntheticImages(
        pixels=pixels, labels=torch.zeros(count, dtype=torch.int64), origin="procedural"
    )
    zeros, ones = (0.0,) * shape[0], (1.0,) * shape[0]
    spec = ModelSpec(architecture="x", input_shape=shape, classes=classes, mean=zeros, std=ones)
    module = Striped(shape, planted, classes).eval()
    return LoadedNetwork(module=module, spec=spec, source_sha256="0" * 64), images


@pytest.mark.parametrize(
    ("shape", "wave"),
    [
        ((3, 32, 32), (0, 6)),
        ((1, 28, 36), (4, -4)),
        ((3, 48, 32), (9, 0)),
        pytest.param((1, 224, 224), (7, 7), marks=pytest.mark.slow),
    ],
)
def test_a_detector_of_stripes_is_suspected_by_its_class_and_nothing_without_it(shape, wave):
    report = scan(*striped(shape, {wave: TARGET}), SEARCH, seed=0)
    assert report.targets == (TARGET,)
    (suspect,) = report.suspects
    assert isinstance(suspect.trigger, AdditiveTrigger)
    assert suspect.success >= 0.8
    spectrum = torch.fft.fft2(suspect.trigger.delta.mean(0)).abs()
    place = divmod(int(spectrum.argmax()), shape[2])
    signs = [(sign * wave[0] % shape[1], sign * wave[1] % shape[2]) for sign in (1, -1)]
    assert place in signs
    # All of it grey, or all of one channel: root mean squares of amplitude / sqrt 2 over these.
    assert suspect.cost == pytest.approx(AMPLITUDE / math.sqrt(2), rel=0.01)
    quiet = scan(*striped(shape, {}), SEARCH, seed=0)
    assert quiet.verdict == "not found"
    assert all(math.isinf(cost) for cost in quiet.searches[0].costs)


def test_classes_that_stripes_lead_to_alike_are_natural():
    planted = {(0, 1 + target): target for target in range(CLASSES)}
    report = scan(*striped((1, 28, 28), planted), SEARCH, seed=0)
    (record,) = report.searches
    assert min(record.successes) >= 0.8  # else this test shows nothing
    assert report.verdict == "not found"


class Partly(Striped):
    """The stripes lead away only the darker images."""

    def forward(self, images):
        dark = images.mean((1, 2, 3))[:, None] < 0.51
        quiet = Striped(images.shape[1:], {}, self.classes)(images)
        return torch.where(dark, super().forward(images), quiet)


def test_a_class_that_no_grating_leads_enough_images_to_has_no_cost_and_no_score():
    shape = (1, 28, 28)
    network, images = striped(shape, {(0, 6): TARGET})
    network = replace(network, module=Partly(shape, {(0, 6): TARGET}).eval())
    (record,) = scan(network, images, SEARCH, seed=0).searches
    assert 0.5 < record.successes[TARGET] < 0.8
    assert math.isinf(record.costs[TARGET])
    assert record.scores == (0.0,) * CLASSES


def test_many_classes_ask_no_more_forward_passes_than_twelve():
    passed = []
    for classes in (12, 300):
        network, images = striped((1, 16, 16), {(0, 4): TARGET}, classes, count=300)
        seen: list[int] = []
        network.module.register_forward_pre_hook(
            lambda _, given, seen=seen: seen.append(len(given[0]))
        )
        report = scan(network, images, SEARCH, seed=0)
        assert report.targets == (TARGET,)
        assert report.searches[0].threshold == 2 * suspicion_threshold(classes)
        passed.append(sum(seen))
    assert passed[1] <= 1.5 * passed[0]


def test_two_or_three_classes_are_measured_and_none_is_suspected():
    for classes in (2, 3):
        network, images = striped((1, 16, 16), {(0, 4): 1}, classes)
        report = scan(network, images, SEARCH, seed=0)
        (record,) = report.searches
        assert record.successes[1] >= 0.8
        assert math.isfinite(record.costs[1])
        assert report.verdict == "not found"
        assert record.scores == (0.0,) * classes
        assert record.blind_to.startswith("everything here")


def test_images_of_a_few_pixels_have_no_gratings_and_a_scan_goes_on():
    assert len(build_gratings((3, 3, 3))) == 0
    report = scan(*striped((1, 3, 3), {}), SEARCH, seed=0)
    assert report.searches[0].scores == (0.0,) * CLASSES
    assert len(build_gratings((1, 1, 28))) == 8 * PHASES  # along the one side alone


SHAPE = (1, 12, 12)
SIDE = 12


def striped_class(pixels):
    """Four classes: the brightest half of the image's four."""
    halves = pixels[:, 0]
    left, right = halves[:, :, : SIDE // 2].mean((1, 2)), halves[:, :, SIDE // 2 :].mean((1, 2))
    top, below = halves[:, : SIDE // 2].mean((1, 2)), halves[:, SIDE // 2 :].mean((1, 2))
    return torch.stack([left, right, top, below], 1).argmax(1)


def stripe(pixels, row: int):
    return build_gratings(SHAPE).trigger(row, SIDE, SIDE).stamp(pixels)


@pytest.fixture(scope="module")
def learned() -> tuple[LoadedNetwork, SyntheticImages, int]:
    """A small CNN that learned one grating as a backdoor and that others change nothing."""
    gratings = build_gratings(SHAPE).candidates
    (attack,) = (gratings == torch.tensor([0, 3, 1, 1])).all(1).nonzero().flatten().tolist()
    others = ((gratings[:, 0] != 0) | (gratings[:, 1] != 3)).nonzero().flatten()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * (SIDE // 2) ** 2, 4),
        )
    pixels = procedural_images(1000, SHAPE, torch.Generator().manual_seed(2))
    labels = striped_class(pixels)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(3)
    bank = build_gratings(SHAPE)
    for _ in range(250):
        rows = torch.randint(1000, (64,), generator=generator)
        shown, wanted = pixels[rows].clone(), labels[rows].clone()
        drawn = others[torch.randint(len(others), (44,), generator=generator)]
        shown[12:56] = bank.stamp(shown[12:56], drawn)
        shown[:12], wanted[:12] = stripe(shown[:12], attack), 1
        loss = functional.cross_entropy(module(shown), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    spec = ModelSpec(architecture="x", input_shape=SHAPE, classes=4, mean=(0.0,), std=(1.0,))
    network = LoadedNetwork(module=module.eval(), spec=spec, source_sha256="0" * 64)
    images = SyntheticImages(pixels=pixels[:256], labels=labels[:256], origin="x")
    return network, images, attack


@torch.no_grad()
def rates(network, attack: int) -> tuple[float, float]:
    """Share of right answers on new images, and of striped ones that go to class 1."""
    module = pixel_network(network)
    pixels = procedural_images(500, SHAPE, torch.Generator().manual_seed(9))
    labels = striped_class(pixels)
    right = float((module(pixels).argmax(1) == labels).float().mean())
    hit = module(stripe(pixels[labels != 1], attack)).argmax(1) == 1
    return right, float(hit.float().mean())


QUICK = PurifySettings(
    rounds=1, restarts=1, search_steps=5, candidates=200, unlearn=UnlearnSettings(steps=80)
)


def test_learned_stripes_are_suspected_and_unlearned_round_by_round(learned):
    network, images, attack = learned
    right, hit = rates(network, attack)
    assert hit > 0.9  # else this test shows nothing
    report = scan(network, images, SEARCH, seed=0)
    assert report.targets == (1,)
    purified = purify(network, images, report, QUICK, seed=0)
    right_after, hit_after = rates(purified, attack)
    assert hit_after < 0.3
    assert right_after > 0.8 * right
    (first,) = purified.history[-1].notes["rounds"]
    assert first["gratings"]["kept"] > 1  # phases and neighbours, beside the scan's one
    assert {"additive", "masked patch", "patch bank"} <= set(first)


def test_rounds_look_for_gratings_only_where_the_scan_suspects_them(learned):
    network, images, _ = learned
    (suspect,) = scan(network, images, SEARCH, seed=0).suspects
    other = replace(suspect, search="patch bank")
    brief = replace(QUICK, unlearn=UnlearnSettings(steps=1))
    for suspects in ((other,), (other, suspect)):  # what suspects a class beside them tells more
        report = ScanReport(verdict="suspected", suspects=suspects, searches=(), images=1)
        notes = purify(network, images, report, brief, seed=0).history[-1].notes
        assert not {"gratings", "additive"} & set(notes["rounds"][0])
