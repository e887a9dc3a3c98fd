"""The published networks' triggers do on a few images what the zoo's README says of many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.data.images import read_pack
from benchmarks.defences.base import batch_norms
from benchmarks.metrics import accuracy, attack_success_rate
from benchmarks.stamps import AddMasked, PastePatch
from benchmarks.studies.published import RESULTS, folded_networks, published_networks
from edgeclean.networks.pixels import pixel_network

SHARED = Path(__file__).parents[2].parent / "shared"
needs_shared = pytest.mark.skipif(
    not (SHARED / "zoo").is_dir(), reason="the published checkpoints (shared/zoo) are not here"
)
GREY = torch.full((2, 3, 32, 32), 0.5)


def test_paste_changes_its_rectangle_alone():
    patch = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0))
    stamped = PastePatch(patch=patch, top=4, left=5)(GREY)
    assert torch.equal(stamped[0, :, 4:6, 5:8], patch)
    stamped[:, :, 4:6, 5:8] = 0.5
    assert torch.equal(stamped, GREY)


def test_paste_outside_is_refused():
    with pytest.raises(ValueError, match="images are 32x32; move it inside"):
        PastePatch(patch=torch.ones(3, 4, 4), top=30, left=0)(GREY)


def test_add_masked_pastes_where_one_adds_where_zero_and_clips():
    pattern = torch.full((3, 32, 32), 0.75)
    mask = torch.zeros(3, 32, 32)
    mask[:, 0] = 1
    stamped = AddMasked(pattern=pattern, mask=mask)(GREY)
    assert torch.equal(stamped[:, :, 0], torch.full((2, 3, 32), 0.75))
    assert torch.equal(stamped[:, :, 1:], torch.ones(2, 3, 31, 32))


@needs_shared
def test_published_triggers_lie_where_the_readme_says():
    published = published_networks(SHARED / "zoo")
    rows = {
        "resnet20-badnets-rgb5x5": (range(24, 29), range(24, 29)),
        "smallvgg-badnets": (range(27, 31), range(27, 31)),
        "lenet-badnets-nobn": (range(27, 32), range(27, 32)),
        "smallvgg-l0-invisible": (range(31, 32), range(23, 32)),
    }
    for name, (height, width) in rows.items():
        changed = (published[name].stamp(GREY) != GREY).any(1)[0].nonzero()
        assert changed.numel(), name
        assert set(changed[:, 0].tolist()) <= set(height), name
        assert set(changed[:, 1].tolist()) <= set(width), name
    assert published["resnet20-clean"].stamp is None


@needs_shared
@pytest.mark.parametrize("name", ["smallvgg-l0-invisible", "lenet-badnets-nobn"])
def test_a_published_network_behaves_as_published(name):
    images = read_pack(SHARED / "data" / "cifar10-test.npz", limit=300)
    network = published_networks(SHARED / "zoo")[name]
    function = pixel_network(network.load())
    low, high = accuracy(function, images).wilson(z=3)
    assert low <= network.published_acc / 100 <= high
    low, high = attack_success_rate(function, images, network.stamp, network.target).wilson(z=3)
    assert low <= network.published_asr / 100 <= high


def test_committed_measurements_agree_with_the_published_numbers():
    record = json.loads((RESULTS / "zoo-before.json").read_text())
    assert len(record["networks"]) == 6
    for name, row in record["networks"].items():
        assert row["acc"]["percent"] == pytest.approx(row["published"]["acc"], abs=0.3), name
        if row["published"]["asr"] is not None:
            assert row["asr"]["percent"] == pytest.approx(row["published"]["asr"], abs=0.3), name


def test_committed_clp_leaves_the_three_small_vggs_backdoored():
    record = json.loads((RESULTS / "clp-zoo.json").read_text())
    for name in ("smallvgg-badnets", "smallvgg-l0-invisible", "smallvgg-trojan-square"):
        assert 97 <= record["networks"][name]["asr"]["percent"] <= 100, name


@needs_shared
@pytest.mark.slow
def test_a_folded_network_is_the_same_function_without_batchnorm():
    name = "resnet20-badnets-rgb5x5"
    published = published_networks(SHARED / "zoo")[name]
    folded = folded_networks(SHARED / "zoo")[f"{name} (folded)"]
    pixels = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, other = (pixel_network(one.load()).eval() for one in (published, folded))
    torch.testing.assert_close(other(pixels), plain(pixels), rtol=0, atol=1e-4)
    assert not batch_norms(other)
    assert batch_norms(plain)
    assert folded.target == published.target
