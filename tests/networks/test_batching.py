"""However large the images, no backward pass keeps more than the bound, and learns the same."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from tiny_networks import tiny_network
from torch import nn

from edgeclean.backdoor.findings import ScanReport
from edgeclean.backdoor.gradient import Evidence
from edgeclean.backdoor.population import Population, TargetedTrigger
from edgeclean.backdoor.purify import PurifySettings, purify
from edgeclean.backdoor.scan import ScanSettings, scan, under_test
from edgeclean.backdoor.triggers import AdditiveTrigger
from edgeclean.backdoor.unlearn import UnlearnSettings, _distillation, _microbatches
from edgeclean.compression.finetune import FinetuneSettings, finetune
from edgeclean.images.procedural import procedural_images
from edgeclean.images.synthesize import SynthesizeSettings, synthesize
from edgeclean.load.model_file import MAX_CLASSES
from edgeclean.measure.agreement import answers_of
from edgeclean.networks import batching
from edgeclean.networks.batching import (
    answers_at_once,
    images_at_once,
    images_in_a_part,
    images_shown,
)
from edgeclean.networks.distillation import OutputDistance
from edgeclean.networks.pixels import pixel_network
from edgeclean.networks.state import SyntheticImages

SHAPE = (3, 8, 8)
WARPS = ScanSettings(searches=("warp",), steps=1)
NOTHING_FOUND = ScanReport(verdict="not found", suspects=(), searches=(), images=1)


class Squares(nn.Module):
    """x to the power 2^times: autograd keeps what each squaring got, and the weight of none."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            images = images * images
        return images


@pytest.fixture
def images() -> SyntheticImages:
    pixels = procedural_images(40, SHAPE, torch.Generator().manual_seed(1))
    return SyntheticImages(pixels=pixels, labels=torch.zeros(40, dtype=torch.int64), origin="x")


@pytest.fixture
def seen() -> list[int]:
    """How many images were in each pass that a gradient was wanted of."""
    return []


@pytest.fixture
def network(seen):
    """A network of which every copy tells ``seen``."""

    def tell(_layer, inputs):
        if torch.is_grad_enabled():
            seen.append(len(inputs[0]))

    watched = tiny_network()
    watched.module[2].register_forward_pre_hook(tell)
    return watched


def bound(monkeypatch, module: nn.Module, images: int) -> None:
    """Memory for so many images of `SHAPE`."""
    an_image = batching._kept_bytes(module, (2, *SHAPE)) - batching._kept_bytes(module, (1, *SHAPE))
    monkeypatch.setattr(batching, "KEPT_BYTES", images * an_image)


def test_a_loss_of_many_classes_is_of_few_images() -> None:
    assert answers_at_once(1000) >= 2**14  # the most that a batch may have
    assert 256 <= answers_at_once(MAX_CLASSES) <= 1024
    assert answers_at_once(10**12) == 1


@pytest.mark.parametrize("times", [1, 3])
def test_what_fits_is_the_bound_over_what_autograd_keeps_of_an_image(times):
    numbers = 3 * 20 * 10
    expected = batching.KEPT_BYTES // (times * 4 * numbers)
    assert images_at_once((3, 20, 10), Squares(times)) == expected
    assert images_at_once((3, 20, 10), Squares(times), Squares(2)) == (
        batching.KEPT_BYTES // ((times + 2) * 4 * numbers)
    )


def test_weights_are_kept_once_however_many_images():
    """A gigabyte of weights would leave no room for images if each image were charged for it."""
    fitting = [
        images_at_once((4, 1, 1), nn.Sequential(nn.Flatten(), nn.Linear(4, outputs)))
        for outputs in (4, 4096)
    ]
    assert fitting[0] == fitting[1] >= batching.KEPT_BYTES // (4 * 4)


def test_nothing_stays_of_what_was_counted():
    """Autograd's graph of the count holds what counts, a cycle that no collection sees."""
    maps: list[weakref.ref] = []
    module = nn.Sequential(nn.Conv2d(3, 4, 1), Squares(2))
    module[0].register_forward_hook(lambda _layer, _images, made: maps.append(weakref.ref(made)))
    images_at_once(SHAPE, module)
    gc.collect()
    assert [made() for made in maps] == [None, None]


def test_one_image_is_the_least(monkeypatch):
    monkeypatch.setattr(batching, "KEPT_BYTES", 1)
    assert images_at_once(SHAPE, Squares(1)) == images_in_a_part(SHAPE, Squares(1)) == 1


def test_a_part_is_smaller_on_a_processor_alone(monkeypatch):
    fitting = images_at_once(SHAPE, Squares(1))
    part = images_in_a_part(SHAPE, Squares(1))
    assert part == batching.PART_BYTES // (4 * 3 * 8 * 8) < fitting
    monkeypatch.setattr(batching, "device_of", lambda _module: torch.device("meta"))
    monkeypatch.setattr(batching, "_kept_bytes", lambda _module, shape: 768 * shape[0])
    assert images_in_a_part(SHAPE, Squares(1)) == fitting


@pytest.mark.parametrize(("side", "most"), [(32, 256), (64, 256), (65, 248), (224, 20), (9000, 1)])
def test_fewer_large_images_are_shown_at_once(side, most):
    assert images_shown((3, side, side)) == most
    assert images_shown((3, side, side), 16) == min(16, most)


@pytest.mark.parametrize(
    "show",
    [
        lambda network, images: answers_of(network, {"procedural": images}),
        lambda network, images: under_test(network, images.pixels),
        lambda network, images: scan(
            network, images, ScanSettings(searches=("warp",), steps=1), seed=0
        ),
    ],
)
def test_no_pass_shows_more_large_images_than_fit(show):
    counts: list[int] = []
    network = tiny_network()
    wide = replace(network, spec=replace(network.spec, input_shape=(3, 300, 300)))

    def count(_layer, inputs):
        if not torch.is_grad_enabled():
            counts.append(len(inputs[0]))

    wide.module[2].register_forward_pre_hook(count)
    pixels = torch.rand(30, 3, 300, 300, generator=torch.Generator().manual_seed(1))
    show(wide, SyntheticImages(pixels=pixels, labels=torch.zeros(30).long(), origin="x"))
    assert 1 < max(counts) <= images_shown((3, 300, 300)) == 11


@pytest.mark.parametrize(("fit", "most"), [(5, 5), (1000, 12)])
def test_synthesis_makes_as_many_images_in_batches_that_fit(network, seen, monkeypatch, fit, most):
    bound(monkeypatch, pixel_network(network), fit)
    made = synthesize(network, SynthesizeSettings(count=24, steps=1, batch_size=12), seed=0)
    assert len(made) == 24
    assert max(seen) == most


@pytest.mark.parametrize("search", ["masked patch", "all-to-all"])
def test_a_search_runs_as_many_slots_as_fit(network, images, seen, monkeypatch, search):
    bound(monkeypatch, under_test(network, images.pixels)[0], 2 * 16)
    found = scan(network, images, ScanSettings(searches=(search,), steps=2), seed=0)
    assert len(found.searches[0].costs) == network.spec.classes
    assert max(seen) == 2 * 16


def test_unlearning_in_parts_sees_no_more_than_fits(network, images, seen, monkeypatch):
    bound(monkeypatch, pixel_network(network), 10)
    asked = PurifySettings(unlearn=UnlearnSettings(steps=2, batch_size=32), procedural=8)
    purify(network, images, NOTHING_FOUND, asked, seed=0)
    assert 5 <= max(seen) <= 10


@pytest.mark.parametrize("at_once", [1, 2, 7, 30])
def test_losses_of_unlearnings_parts_add_up_to_that_of_the_whole(at_once):
    teacher, student = (pixel_network(tiny_network(seed=seed)).eval() for seed in (0, 1))
    clean = procedural_images(12, SHAPE, torch.Generator().manual_seed(1))
    shown = torch.tensor([11, 2, 7, 3, 4])
    stamped = clean[shown].flip(1)
    likeness = OutputDistance("logits", 1.0)

    def loss(parts):
        with torch.no_grad():
            return sum(float(_distillation(student, teacher, part, likeness)) for part in parts)

    parts = list(_microbatches(clean, stamped, shown, at_once))
    assert max(len(part.clean) + len(part.stamped) for part in parts) <= max(2, at_once)
    whole = loss(_microbatches(clean, stamped, shown, at_once=1000))
    assert loss(parts) == pytest.approx(whole, rel=0.01)  # bfloat16, in another order


def test_triggers_that_move_in_parts_move_alike():
    learner = pixel_network(tiny_network()).eval().requires_grad_(False)
    pixels = procedural_images(40, SHAPE, torch.Generator().manual_seed(1))
    with torch.no_grad():
        evidence = Evidence(pixels, learner(pixels).argmax(1))
    deltas = 0.02 * torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(2))
    wanted = [
        TargetedTrigger(AdditiveTrigger(delta), target) for target, delta in enumerate(deltas)
    ]

    def moved(at_once):
        population = Population(wanted, evidence, ascent_steps=1, growth=1.2, at_once=at_once)
        population.ascend(learner, torch.Generator().manual_seed(3))
        (delta,) = population._groups[0].moving.parameters()
        return delta.detach()

    whole = moved(1000)
    assert not torch.equal(whole, deltas)
    # Adam's first step is the gradient's sign: another only where the gradient is next to nothing.
    assert float((moved(8) - whole).abs().lt(1e-6).double().mean()) > 0.99


@pytest.mark.parametrize("adversarial_share", [0.0, 0.5])
def test_finetuning_in_parts_sees_no_more_than_fits_and_learns_the_same(
    network, images, seen, monkeypatch, adversarial_share
):
    student = replace(network, module=copy.deepcopy(network.module))
    with torch.no_grad():
        student.module[0].weight.mul_(1.5)
    asked = FinetuneSettings(
        steps=1,
        batch_size=32,
        photograph_share=0.5,
        adversarial_share=adversarial_share,
        optimizer="adam",
    )
    whole = finetune(student, network, images, asked, seed=0)
    bound(monkeypatch, pixel_network(network), 6)
    seen.clear()
    parts = finetune(student, network, images, asked, seed=0)
    assert 4 <= max(seen) <= 6
    if adversarial_share:
        return  # each part draws its own attacks
    first, again = (one.history[-1].notes["loss_first"] for one in (whole, parts))
    assert again == pytest.approx(first, rel=0.01)
    before, one, other = (
        torch.cat([parameter.flatten() for parameter in network.module.parameters()]).detach()
        for network in (student, whole, parts)
    )
    assert float((one - before).abs().gt(0).double().mean()) > 0.9
    # Adam's first step is the gradient's sign: another only where the gradient is next to nothing.
    assert float((one - other).abs().lt(1e-6).double().mean()) > 0.97


@pytest.mark.parametrize("bank", ["patch bank", "gratings"])
def test_a_bank_is_scored_in_batches_that_fit(images, monkeypatch, bank):
    passes: list[int] = []
    watched = tiny_network()
    watched.module[2].register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    monkeypatch.setattr(batching, "SHOWN_NUMBERS", 5 * images.pixels[0].numel())
    few = replace(images, pixels=images.pixels[:4], labels=images.labels[:4])
    passes.clear()
    scan(watched, few, ScanSettings(searches=(bank,), bank_candidates=40), seed=0)
    assert max(passes) == 5
