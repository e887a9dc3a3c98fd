"""The plan of ranks: it meets the ratio, obeys what was asked, and refuses what cannot be."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from exhaustive import each_once, exhaustive
from factor_networks import Stem, network_of, plain, seeded, some_images
from torch import nn
from zoo import needs_zoo, zoo_network

from edgeclean.compression import planned_network
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.factorisation import Separable
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.errors import InputRejectedError, RatioError, UsageError
from edgeclean.networks.cost import count_macs, count_params

AXES = (["macs", "params"], [1.3, 2.0, 4.0], ["weights", "activations"])


@pytest.mark.parametrize(
    ("measure", "ratio", "factors"), exhaustive(itertools.product(*AXES), each_once(*AXES))
)
def test_the_ratio_is_met_within_two_percent(measure, ratio, factors):
    network = plain()
    rank_settings = RankSettings(ratio=ratio, measure=measure, factors=factors)
    plan = choose_ranks(network, rank_settings, images=some_images())
    module = truncate(decompose(network, DecomposeSettings()), plan, TruncateSettings()).module
    count = {"macs": lambda m: count_macs(m, (3, 16, 16)), "params": count_params}[measure]
    assert ratio <= count(network.module) / count(module) <= 1.02 * ratio


PUBLISHED = [
    ("resnet20-clean", 2.0, "macs", 8),
    ("lenet-badnets-nobn", 2.0, "macs", 1),
    ("resnet20-clean", 2.0, "macs", 1),
    ("resnet20-clean", 4.0, "macs", 1),
    ("resnet20-clean", 4.0, "params", 8),
    ("smallvgg-badnets", 3.0, "macs", 8),
]


@needs_zoo
@pytest.mark.parametrize(
    ("name", "ratio", "measure", "multiple"), exhaustive(PUBLISHED, PUBLISHED[:2])
)
def test_published_networks_reach_their_ratio(name, ratio, measure, multiple):
    plan = choose_ranks(
        zoo_network(name), RankSettings(ratio=ratio, measure=measure, rank_multiple=multiple)
    )
    assert ratio <= plan.ratio <= 1.02 * ratio
    if multiple > 1:
        for layer in plan.layers:
            channels = (16, 32, 64, 128)
            of = layer.ranks
            ranks = () if of is None else (of.rank,) if isinstance(of, Separable) else of
            assert all(rank % multiple == 0 or rank in (*channels, 3, 2, 1) for rank in ranks)


def test_an_impossible_ratio_names_the_nearest_which_is_possible():
    with pytest.raises(RatioError, match=r"--ratio 500 of macs cannot be met") as caught:
        choose_ranks(plain(), RankSettings(ratio=500.0))
    nearest = float(str(caught.value).split("--ratio ")[2].split(" ")[0])
    assert choose_ranks(plain(), RankSettings(ratio=nearest)).ratio >= nearest
    with pytest.raises(RatioError):
        choose_ranks(plain(), RankSettings(ratio=nearest + 0.05))


def test_ratio_one_keeps_every_layer():
    plan = choose_ranks(plain(), RankSettings(ratio=1.0), images=some_images())
    assert set(plan.ranks().values()) == {None}
    assert plan.ratio == 1.0


def test_layers_that_do_not_get_smaller_are_listed():
    tiny = network_of(
        nn.Sequential(
            seeded(lambda: nn.Conv2d(3, 2, 1)), seeded(lambda: nn.Conv2d(2, 64, 3)),
            seeded(lambda: nn.Conv2d(64, 64, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
    )  # fmt: skip
    plan = choose_ranks(tiny, RankSettings(ratio=2.0, least_gain=0.7))
    reasons = {layer.layer: layer.reason for layer in plan.layers}
    assert reasons["0"] == "would not get smaller"
    assert plan.ranks()["2"] is not None
    assert reasons["2"] == ""


def test_a_layer_that_matters_more_keeps_more():
    """With the outputs deaf to one of two equal layers, that one is cut first."""

    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.loud = nn.Conv2d(3, 32, 3, padding=1)
            self.heard = nn.Conv2d(32, 32, 3, padding=1)
            self.ignored = nn.Conv2d(32, 32, 3, padding=1)
            self.head = nn.Linear(32, 5)

        def forward(self, images):
            features = torch.relu(self.loud(images))
            both = self.heard(features) + 0.001 * self.ignored(features)
            return self.head(torch.relu(both).mean(dim=(2, 3)))

    network = network_of(seeded(Fork))
    plan = {
        layer.layer: layer
        for layer in choose_ranks(
            network, RankSettings(ratio=1.8, keep=("loud",)), images=some_images()
        ).layers
    }
    assert plan["ignored"].macs_after < 0.5 * plan["heard"].macs_after
    assert plan["loud"].reason == "named by --keep"


def test_measuring_leaves_the_network_as_it_was_and_repeats_exactly():
    network = decompose(plain(), DecomposeSettings())
    before = {key: tensor.clone() for key, tensor in network.module.state_dict().items()}
    first = choose_ranks(network, RankSettings(ratio=2.0), images=some_images())
    second = choose_ranks(network, RankSettings(ratio=2.0), images=some_images())
    assert [layer.as_json() for layer in first.layers] == [
        layer.as_json() for layer in second.layers
    ]
    for key, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_without_images_the_weights_decide():
    plan = choose_ranks(plain(), RankSettings(ratio=2.0, forms=("tucker",)))
    assert plan.images == 0
    assert all(layer.factors is None for layer in plan.layers)
    weights = RankSettings(ratio=2.0, sensitivity="energy", factors="weights", forms=("tucker",))
    by_energy = choose_ranks(plain(), weights, images=some_images())
    assert by_energy.ranks() == plan.ranks()


def test_images_are_no_more_than_asked_and_affordable(monkeypatch):
    plan = choose_ranks(plain(), RankSettings(ratio=2.0, images=5), images=some_images(12))
    assert plan.images == 5
    monkeypatch.setattr(planned_network, "_MOST_MACS", 9 * plan.macs_before)
    assert choose_ranks(plain(), RankSettings(ratio=2.0), images=some_images(12)).images == 9


def test_only_what_is_decomposed_is_planned():
    network = decompose(plain(), DecomposeSettings(keep=("late",)))
    plan = {p.layer: p for p in choose_ranks(network, RankSettings(ratio=1.5)).layers}
    assert plan["late"].ranks is None
    assert plan["late"].reason == "kept whole when the network was decomposed"


def test_overrides_are_obeyed():
    plan = choose_ranks(
        plain(), RankSettings(ratio=1.5, overrides={"late": (5, 7), "point": (9, 9)})
    )
    assert plan.ranks()["late"] == (5, 7)
    assert plan.ranks()["point"] == (9, 9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lat": (1, 1)}, "rank override 'lat' is no layer.*late"),
        ({"late": (49, 3)}, r"ranks \[49, 3\] of late must lie between \[1, 1\] and \[48, 64\]"),
        ({"point": (3, 4)}, r"point is a 1x1 convolution and has one rank; give \[r, r\]"),
        ({"late": (48, 64)}, "make late no smaller"),
        ({"head": (1, 1)}, "head cannot be given ranks: a linear layer"),
    ],
)
def test_overrides_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        choose_ranks(plain(), RankSettings(ratio=1.5, overrides=overrides))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratio": 0.5}, "ratio is 0.5; it must be a number from 1 "),
        ({"ratio": math.nan}, "ratio is nan; it must be a number from 1 "),
        ({"rank_multiple": 0}, "rank_multiple is 0; it must be a whole number from 1 "),
        ({"ridge": 0.0}, "ridge is 0.0; it must be a number from 0.001 "),
        ({"least_gain": 1.0}, "least_gain is 1.0; it must be a number at least 0 and below 1"),
        ({"keep": ("a",), "overrides": {"a": (1, 1)}}, "'a' is kept and has ranks"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        RankSettings(**wrong)


def test_unknown_words_are_refused_where_types_are_not_checked():
    code = """
from edgeclean.compression.settings import RankSettings
from edgeclean.errors import UsageError
try:
    RankSettings(measure="flops")
except UsageError as refusal:
    print(refusal)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "measure is 'flops'; it must be one of macs, params" in told.stdout


def test_nan_weights_are_named():
    module = seeded(Stem)
    with torch.no_grad():
        module.point.weight[0, 0] = float("nan")
    with pytest.raises(InputRejectedError, match="layer point holds NaN"):
        choose_ranks(network_of(module), RankSettings(ratio=1.1))
