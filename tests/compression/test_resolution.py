"""Smaller images in the plan: where they harm less than ranks, and what the network then is."""

import copy
from dataclasses import replace

import pytest
import torch
from latency_tables import made_up_table
from torch import nn

from edgeclean.compression import resolution
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.finetune import FinetuneSettings, finetune
from edgeclean.compression.judge import Judge
from edgeclean.compression.plan import choose_ranks
from edgeclean.compression.resolution import check_reach, choose_plan, smaller_sizes
from edgeclean.compression.settings import OF_LAYERS, RankSettings
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.errors import RatioError, UsageError
from edgeclean.networks.cost import count_macs
from edgeclean.networks.resized import Resized
from edgeclean.networks.state import LoadedNetwork, ModelSpec, SyntheticImages
from edgeclean.report.layer_table import layer_rows
from edgeclean.stage_results import from_bytes, to_bytes

ALL = ("tucker", "hidden", "separable", "resolution")
CLASSES, SIDE = 5, 16
BRIEF = FinetuneSettings(steps=12, batch_size=8)


def network_of(module, image=(3, SIDE, SIDE), classes=CLASSES):
    spec = ModelSpec(
        architecture="test",
        input_shape=image,
        classes=classes,
        mean=(0.5,) * image[0],
        std=(0.25,) * image[0],
    )
    return LoadedNetwork(module=module.eval(), spec=spec, source_sha256="0" * 64)


def images_of(network, count=12):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(count, *network.spec.input_shape, generator=generator)
    return SyntheticImages(pixels=pixels, labels=torch.arange(count) % CLASSES, origin="noise")


def of_colours():
    """A network that looks at one pixel at a time, and needs every channel for that."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)]
    for conv in convs[1:]:
        nn.init.orthogonal_(conv.weight)
    layers = [part for conv in convs for part in (conv, nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def of_edges():
    """A network that counts changes from a pixel to the next, with far more layer than it needs."""
    torch.manual_seed(0)
    edges, wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 32, 3, padding=1)
    checks = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]])
    edges.weight.data = torch.randn(8, 3, 1, 1) * checks
    wide.weight.data = torch.einsum("o,ihw->oihw", torch.rand(32), torch.rand(8, 3, 3))
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))
    return nn.Sequential(edges, nn.ReLU(), wide, nn.ReLU(), *pooled)


def of_groups(flat=False):
    """A network of which hardly a layer can be made smaller: all but the first are of groups."""
    torch.manual_seed(0)
    first, grouped = nn.Conv2d(3, 16, 3, padding=1), [nn.Conv2d(16, 16, 3, 1, 1, groups=4)] * 3
    layers = [part for conv in [first, *map(copy.deepcopy, grouped)] for part in (conv, nn.ReLU())]
    pooled = [] if flat else [nn.AdaptiveAvgPool2d(1)]
    inputs = 16 * SIDE * SIDE if flat else 16
    return nn.Sequential(*layers, *pooled, nn.Flatten(), nn.Linear(inputs, CLASSES))


def decomposed(module, image=(3, SIDE, SIDE)):
    return decompose(network_of(module, image), DecomposeSettings())


def test_a_network_of_colours_sees_smaller_images():
    ratio = 2.0
    network = decomposed(of_colours())
    plan = choose_plan(
        network, RankSettings(ratio=ratio, forms=ALL), images=images_of(network), recovery=BRIEF
    )
    assert plan.resolution is not None
    assert ratio <= plan.ratio <= 1.06 * ratio
    made = truncate(network, plan, TruncateSettings())
    assert isinstance(made.module, Resized)
    assert made.module.resize.size == plan.resolution
    shape = network.spec.input_shape
    assert count_macs(made.module, shape) == plan.macs_after
    assert count_macs(of_colours(), shape) == plan.macs_before
    assert made.history[-1].notes["resolution"] == [*plan.resolution]


def test_what_ranks_lose_comes_back_and_what_pixels_lost_does_not():
    network, settings = decomposed(of_colours()), RankSettings(ratio=3.0, forms=ALL)
    sizes = [
        choose_plan(network, settings, images=images_of(network), recovery=recovery).resolution
        for recovery in (replace(BRIEF, steps=0), replace(BRIEF, steps=600))
    ]
    assert sizes[0] is not None
    assert sizes[1] is None


def test_a_network_of_edges_sees_its_own():
    network = decomposed(of_edges())
    assert [*smaller_sizes(network_of(of_edges()), 2.0)]
    plan = choose_plan(
        network, RankSettings(ratio=2.0, forms=ALL), images=images_of(network), recovery=BRIEF
    )
    assert plan.resolution is None
    assert not isinstance(truncate(network, plan, TruncateSettings()).module, Resized)


def test_the_plan_without_the_form_is_that_of_ranks():
    network = decomposed(of_colours())
    images, forms = images_of(network), ("tucker", "hidden", "separable")
    chosen = choose_plan(
        network, RankSettings(ratio=2.0, forms=forms), images=images, recovery=BRIEF
    )
    ranks = choose_ranks(network, RankSettings(ratio=2.0, forms=forms), images=images)
    assert chosen.resolution is None
    assert (chosen.ranks(), chosen.macs_after) == (ranks.ranks(), ranks.macs_after)


@pytest.mark.parametrize(
    "asked",
    [
        {"measure": "params"},
        {"size_budget": 10**6},
        {"speedup": 2.0},
        {"latency_budget_ms": 1.0},
    ],
    ids=str,
)
def test_any_goal_but_a_ratio_of_macs_is_refused(asked):
    with pytest.raises(UsageError, match="for a ratio of multiply-accumulates"):
        RankSettings(forms=ALL, **asked)


def test_nothing_is_tried_without_images_to_judge_on():
    settings = RankSettings(ratio=1.2, forms=ALL)
    assert choose_plan(decomposed(of_colours()), settings, recovery=BRIEF).resolution is None
    with pytest.raises(RatioError, match="cannot be met"):
        choose_plan(decomposed(of_groups()), RankSettings(ratio=2.0), recovery=BRIEF)


def test_resolution_alone_makes_no_layer_smaller():
    with pytest.raises(UsageError, match="name tucker, hidden or separable too"):
        RankSettings(forms=("resolution",))


# The first is reached by the pixels alone, the second by pixels and layers together.
@pytest.mark.parametrize("ratio", [1.75, 2.0])
def test_smaller_images_reach_what_layers_alone_do_not(ratio):
    network, settings = decomposed(of_groups()), RankSettings(ratio=ratio)
    with pytest.raises(RatioError):
        choose_ranks(network, replace(settings, forms=OF_LAYERS), images=images_of(network))
    check_reach(network_of(of_groups()), settings)
    plan = choose_plan(network, settings, images=images_of(network), recovery=BRIEF)
    assert plan.resolution is not None
    assert ratio <= plan.ratio <= 1.2 * ratio  # a pixel a side is as much
    assert plan.settings["ratio"] == plan.ratio_asked == ratio
    assert plan.settings["forms"] == [*OF_LAYERS, "resolution"]
    made = truncate(network, plan, TruncateSettings())
    assert count_macs(made.module, network.spec.input_shape) == plan.macs_after
    assert count_macs(of_groups(), network.spec.input_shape) == plan.macs_before


# Whether a network was recovered shows nowhere but in the time that it takes.
@pytest.mark.parametrize(("ratio", "recovered"), [(1.75, 2), (3.9, 0)])
def test_a_plan_that_is_alone_is_not_recovered_to_be_compared(monkeypatch, ratio, recovered):
    plans = []
    recover = resolution.briefly_recovered

    def counted(network, plan, *rest):
        plans.append(plan)
        return recover(network, plan, *rest)

    monkeypatch.setattr(resolution, "briefly_recovered", counted)
    network, settings = decomposed(of_groups()), RankSettings(ratio=ratio)
    chosen = choose_plan(network, settings, images=images_of(network), recovery=BRIEF)
    assert chosen.resolution is not None
    assert len(plans) == recovered


@pytest.mark.parametrize(
    ("flat", "asked"),
    [
        (False, {"ratio": 2.0, "forms": OF_LAYERS}),
        (True, {"ratio": 2.0}),  # it takes images of one size
        (False, {"ratio": 6.0}),  # half of the side and all that layers have
        (False, {"ratio": 2.0, "measure": "params"}),
    ],
    ids=str,
)
def test_what_neither_reaches_is_refused_at_once_and_at_last(flat, asked):
    settings = RankSettings(**asked)
    with pytest.raises(RatioError, match="cannot be met") as early:
        check_reach(network_of(of_groups(flat)), settings)
    network = decomposed(of_groups(flat))
    with pytest.raises(RatioError) as late:
        choose_plan(network, settings, images=images_of(network), recovery=BRIEF)
    assert str(early.value) == str(late.value)


def test_a_latency_table_has_no_times_of_smaller_images():
    network, settings = network_of(of_groups()), RankSettings(ratio=2.0)
    table, rest = made_up_table(network), {"images": images_of(network), "recovery": BRIEF}
    with pytest.raises(RatioError, match="cannot be met"):
        check_reach(network, settings, table=table)
    with pytest.raises(RatioError, match="cannot be met"):
        choose_plan(decomposed(of_groups()), settings, table=table, **rest)


def strided(image, flat=False):
    """Two halvings: a map of a quarter of the side."""
    channels, height, width = image
    head = (
        [nn.Flatten(), nn.Linear(16 * -(-height // 4) * -(-width // 4), CLASSES)]
        if flat
        else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)]
    )
    stem = nn.Conv2d(channels, 16, 3, 2, 1)
    return nn.Sequential(stem, nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), *head)


@pytest.mark.parametrize(
    ("image", "ratio", "sizes"),
    [
        ((3, 32, 32), 2.0, [(28, 28), (24, 24)]),
        ((1, 28, 28), 2.0, [(24, 24), (20, 20)]),
        ((3, 32, 64), 2.0, [(32, 60), (24, 52), (24, 44)]),
        ((1, 1, 64), 1.5, [(1, 60), (1, 52), (1, 44)]),
        ((3, 32, 32), 9.0, [(28, 28), (16, 16)]),
        ((3, 20, 64), 9.0, [(12, 32)]),
        ((3, 32, 32), 1.05, []),
        ((3, 8, 8), 4.0, []),
    ],
)
def test_sizes_are_those_that_the_strides_divide(image, ratio, sizes):
    found = [*smaller_sizes(network_of(strided(image), image), ratio)]
    assert [size for size in found if size in sizes] == sizes
    assert all(2 * h >= image[1] and 2 * w >= image[2] for h, w in found)
    assert all(h % 4 in (0, 1) and w % 4 == 0 and (h, w) != image[1:] for h, w in found)
    network = network_of(strided(image), image)
    whole = count_macs(network.module, image)
    for size in found:
        assert whole / count_macs(network.module, (image[0], *size)) <= ratio * 1.05


def test_a_network_that_flattens_its_maps_takes_one_size():
    image = (3, 32, 32)
    assert [*smaller_sizes(network_of(strided(image, flat=True), image), 4.0)] == []


@pytest.mark.parametrize("error", [AssertionError, IndexError, TypeError, KeyError])
def test_a_network_may_refuse_other_sizes_in_any_way(error):
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = strided((3, 32, 32))

        def forward(self, images):
            if images.shape[2:] != (32, 32):
                raise error("another size")
            return self.inner(images)

    network = decomposed(Strict(), (3, 32, 32))
    plan = choose_plan(
        network, RankSettings(ratio=1.5, forms=ALL), images=images_of(network), recovery=BRIEF
    )
    assert plan.resolution is None


def normed():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)),
    )


def test_recovery_and_the_report_take_a_resized_network():
    torch.manual_seed(0)
    teacher = network_of(normed(), (3, 32, 32))
    images = images_of(teacher, 16)
    network = decompose(teacher, DecomposeSettings())
    small = replace(network.spec, input_shape=(3, 24, 24))
    there = replace(network, spec=small)
    plan = replace(
        choose_ranks(there, RankSettings(ratio=1.2)),
        resolution=(24, 24),
        macs_before=count_macs(teacher.module, (3, 32, 32)),
        macs_resized=count_macs(teacher.module, (3, 24, 24)),
    )
    made = truncate(network, plan, TruncateSettings())
    tuned = finetune(made, teacher, images, FinetuneSettings(steps=30, batch_size=8), seed=0)
    assert isinstance(tuned.module, Resized)
    assert tuned.history[-1].notes["loss_last"] < tuned.history[-1].notes["loss_first"]
    rows = layer_rows(teacher, tuned)
    assert sum(row.macs_after for row in rows) == plan.macs_after
    kept = from_bytes(to_bytes(tuned), made)
    assert repr(kept.module) == repr(tuned.module)
    with torch.no_grad():
        given = kept.module(images.pixels)
        assert torch.allclose(given, tuned.module(images.pixels), atol=1e-6)


def times(factor, module):
    scaled = copy.deepcopy(module)
    head = [layer for layer in scaled.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        head.weight *= factor
        head.bias *= factor
    return scaled


def test_a_change_is_of_answers_and_not_of_their_common_factor():
    network = network_of(normed(), (3, 32, 32))
    judge, plain = Judge.of(network), network.module
    assert judge.change(plain) == pytest.approx(0, abs=1e-9)
    assert judge.change(times(0.3, plain)) == pytest.approx(0, abs=1e-9)
    assert judge.change(times(-1.0, plain)) == 1
    assert judge.change(times(0.0, plain)) == 1
    torch.manual_seed(5)
    turned = copy.deepcopy(plain)
    nn.init.normal_([one for one in turned.modules() if isinstance(one, nn.Linear)][-1].weight)
    change = judge.change(turned)
    assert 0.05 < change <= 1
    own, given = (
        outputs - outputs.mean(1, keepdim=True)
        for outputs in (plain(judge.images).double(), turned(judge.images).double())
    )
    cosine = torch.cosine_similarity(own.flatten(), given.flatten(), dim=0).clamp(min=0).detach()
    assert change == pytest.approx(float(1 - cosine**2), abs=1e-6)


def test_a_network_that_answers_nothing_loses_nothing():
    silent = network_of(times(0.0, normed()), (3, 32, 32))
    assert Judge.of(silent).change(normed()) == 0
