"""What shapes alone decide is refused early exactly where the stages would refuse it late."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from factor_networks import network_of, seeded
from latency_tables import made_up_table
from torch import Tensor, nn

from edgeclean.compression.candidates import (
    CandidateLimits,
    cheapest_candidate,
    list_candidates,
)
from edgeclean.compression.clamp import ScaleSettings, scale
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.goals import FileSize
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.compression.planned_network import planned_network
from edgeclean.compression.reach import check_layers_reach
from edgeclean.errors import EdgecleanError, RatioError, UsageError
from edgeclean.networks.state import LoadedNetwork

SEEDS = range(16)


class Drawn(nn.Module):
    """Convolutions of any kind, some run twice or share their weights, and a linear layer."""

    def __init__(self, drawn: random.Random) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.repeats: list[int] = []
        channels = 3
        for _ in range(drawn.randint(1, 4)):
            self.layers.append(layer := _layer(drawn, channels))
            channels, again = layer.out_channels, layer.out_channels == layer.in_channels
            self.repeats.append(drawn.choice((1, 2)) if again and layer.stride == (1, 1) else 1)
        if drawn.random() < 0.4:
            twins = [nn.Conv2d(channels, 8, 3, padding=1) for _ in range(2)]
            twins[1].weight = twins[0].weight
            self.twins = nn.ModuleList(twins)
            channels = 8
        self.head = nn.Linear(channels, 5)

    def forward(self, images: Tensor) -> Tensor:
        for layer, times in zip(self.layers, self.repeats, strict=True):
            for _ in range(times):
                images = torch.relu(layer(images))
        if hasattr(self, "twins"):
            images = self.twins[0](images) + self.twins[1](images)
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


def _layer(drawn: random.Random, channels: int) -> nn.Conv2d:
    out = drawn.choice((1, 2, 3, 8, channels, 17, 24))
    kind = drawn.choice(("plain", "plain", "point", "flat", "depthwise", "reflect"))
    stride = drawn.choice((1, 1, 2))
    if kind == "point":
        return nn.Conv2d(channels, out, 1, stride=stride)
    if kind == "flat":
        return nn.Conv2d(channels, out, (3, 1), padding=(1, 0), bias=False)
    if kind == "depthwise":
        return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    mode = "reflect" if kind == "reflect" else "zeros"
    return nn.Conv2d(channels, out, 3, stride=stride, padding=1, padding_mode=mode)


def drawn_network(seed: int) -> LoadedNetwork:
    return network_of(seeded(lambda: Drawn(random.Random(seed)), seed))


def said(judge: Callable[[], object]) -> tuple[type[EdgecleanError], str] | None:
    try:
        judge()
    except EdgecleanError as error:
        return type(error), str(error)
    return None


def both(
    network: LoadedNetwork, settings: RankSettings, keep: tuple[str, ...] = (), **more: Any
) -> tuple[type[EdgecleanError], str] | None:
    """What both say, which is the same."""

    def late() -> None:
        decomposed = decompose(network, DecomposeSettings(keep=keep))
        choose_ranks(scale(decomposed, ScaleSettings()), settings, **more)

    early = said(lambda: check_layers_reach(network, settings, keep=keep, **more))
    later = said(late)
    if early is None or later is None:
        assert early == later
        return None
    # Of a layer in ``keep`` the late one says otherwise why it was kept.
    assert early[0] is later[0]
    assert early[1].split(" stay whole")[0] == later[1].split(" stay whole")[0]
    return early


@pytest.mark.parametrize("seed", SEEDS)
def test_the_early_judgement_is_the_late_one(seed: int) -> None:
    drawn = random.Random(seed)
    network = drawn_network(seed)
    names = [f"layers.{index}" for index in range(len(network.module.layers))]  # type: ignore[arg-type]
    keep = tuple(name for name in names if drawn.random() < 0.2)
    chosen: dict[str, Any] = {
        "measure": drawn.choice(("macs", "params")),
        "rank_multiple": drawn.choice((1, 4, 8)),
        "least_gain": drawn.choice((0.0, 0.1, 0.5)),
        "sensitivity": "energy",
        "keep": tuple(name for name in names if drawn.random() < 0.1),
    }
    free = [name for name in names if name not in chosen["keep"]]
    if free and drawn.random() < 0.3:
        chosen["overrides"] = {drawn.choice(free): (drawn.randint(1, 9), drawn.randint(1, 9))}
    more: dict[str, Any] = {}
    if drawn.random() < 0.3 and said(lambda: made_up_table(network)) is None:
        more["table"] = made_up_table(network)
    beyond = both(network, RankSettings(ratio=1e6, **chosen), keep, **more)
    assert beyond is not None
    if beyond[0] is not RatioError:  # nothing is decomposed, or ranks do not fit: at any ratio
        assert both(network, RankSettings(ratio=1.0, **chosen), keep, **more) is not None
        return
    nearest = float(beyond[1].split("ask for --ratio ")[1].split(" ")[0])
    assert both(network, RankSettings(ratio=nearest, **chosen), keep, **more) is None
    refused = both(network, RankSettings(ratio=nearest + 0.02, **chosen), keep, **more)
    assert refused is not None


@pytest.mark.parametrize("seed", SEEDS)
def test_the_cheapest_candidate_needs_no_weights(seed: int) -> None:
    network = drawn_network(seed)
    planned = planned_network(network, (), None, most_images=1, ridge=None)
    table = made_up_table(network)
    for name in planned.convs:
        layer = planned.layers[name]
        known = table.times(layer.shapes[0]) if layer.runs == 1 else None
        for cost, multiple, gain in (("macs", 1, 0.1), ("params", 4, 0.0), ("macs", 8, 0.6)):
            limits = CandidateLimits(cost=cost, rank_multiple=multiple, least_gain=gain)  # type: ignore[arg-type]
            for times in (None, known):
                listed = list_candidates(layer, planned.fit(name), limits=limits, times=times)
                cheapest = cheapest_candidate(layer, limits=limits, times=times)
                assert cheapest.cost(limits.cost) == min(one.cost(limits.cost) for one in listed)


def test_goals_of_time_and_size_are_judged_by_what_they_need() -> None:
    network = network_of(seeded(lambda: nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.Conv2d(24, 24, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 5),
    )))  # fmt: skip
    table, file = made_up_table(network), FileSize(bytes_per_param=4.0, overhead_bytes=500)
    for unknown in (RankSettings(speedup=900.0), RankSettings(size_budget=600)):
        check_layers_reach(network, unknown)
    slow = both(network, RankSettings(speedup=900.0), table=table)
    large = both(network, RankSettings(size_budget=600), file=file)
    none = both(network, RankSettings(size_budget=400), file=file)
    assert [one and one[0] for one in (slow, large, none)] == [RatioError] * 3
    assert both(network, RankSettings(speedup=1.0), table=table) is None
    assert both(network, RankSettings(size_budget=60_000), file=file) is None


def test_weights_are_not_looked_at_and_the_network_is_left_as_it_was() -> None:
    network = drawn_network(3)
    for weight in network.module.parameters():
        weight.data.fill_(float("nan"))
    modes = [part.training for part in network.module.modules()]
    with pytest.raises(RatioError):
        check_layers_reach(network, RankSettings(ratio=1e6))
    assert modes == [part.training for part in network.module.modules()]


def test_a_layer_that_is_not_there_and_one_that_stays_are_named() -> None:
    network = drawn_network(3)
    with pytest.raises(UsageError, match="no layer of this network"):
        check_layers_reach(network, RankSettings(), keep=("nowhere",))
    with pytest.raises(RatioError) as refused:
        check_layers_reach(network, RankSettings(ratio=1e6))
    assert "head (a linear layer; only convolutions are factored)" in str(refused.value)
    assert "plain Conv2d of one group" in str(refused.value)
    assert "\n" not in str(refused.value)
