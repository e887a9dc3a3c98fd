"""The committed demo network is small, backdoored, and what its training record says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.data.images import read_pack
from benchmarks.metrics import accuracy, attack_success_rate
from benchmarks.networks.train_demo import (
    DEMO,
    MARGIN,
    PATCH_SIDE,
    RATE,
    TARGET,
    demo_attack,
    demo_network,
)
from edgeclean.networks.pixels import pixel_network

PACK = Path(__file__).parents[2].parent / "shared" / "data" / "cifar10-test.npz"
needs_demo = pytest.mark.skipif(
    not DEMO.with_suffix(".safetensors").is_file(),
    reason="benchmarks/zoo/demo.* is not trained yet",
)


def test_the_trigger_is_a_patch_off_the_lower_right_corner():
    attack = demo_attack()
    grey = torch.full((1, 3, 32, 32), 0.5)
    changed = (attack.stamp(grey) != grey).any(1)[0].nonzero()
    first, last = 32 - PATCH_SIDE - MARGIN, 31 - MARGIN
    assert changed.min(0).values.tolist() == [first, first]
    assert changed.max(0).values.tolist() == [last, last]
    assert (attack.target, attack.rate) == (TARGET, RATE)


@needs_demo
def test_the_committed_files_meet_their_aims():
    record = json.loads(DEMO.with_suffix(".json").read_text())
    assert DEMO.with_suffix(".safetensors").stat().st_size <= 1_500_000
    assert record["test"]["acc"]["percent"] >= 85
    assert record["test"]["asr"]["percent"] >= 97
    assert re.match(r"python -m benchmarks\.(networks\.)?train_demo ", record["command"])


@needs_demo
def test_the_trigger_in_the_record_is_the_one_it_was_trained_with():
    grey = torch.full((1, 3, 32, 32), 0.5)
    assert torch.equal(demo_network().stamp(grey), demo_attack().stamp(grey))
    assert demo_network().target == TARGET


@needs_demo
@pytest.mark.skipif(not PACK.is_file(), reason="the image packs (shared/data) are not here")
def test_the_committed_weights_do_what_the_record_says():
    demo, images = demo_network(), read_pack(PACK, limit=300)
    record = json.loads(DEMO.with_suffix(".json").read_text())["test"]
    function = pixel_network(demo.network)
    low, high = accuracy(function, images).wilson(z=3)
    assert low <= record["acc"]["percent"] / 100 <= high
    low, high = attack_success_rate(function, images, demo.stamp, demo.target).wilson(z=3)
    assert low <= record["asr"]["percent"] / 100 <= high
