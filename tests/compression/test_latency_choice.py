"""Ranks chosen by a latency table."""

import itertools
import math

import pytest
from factor_networks import Plain, network_of, plain, seeded, some_images
from latency_tables import made_up_table
from torch import nn

from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.fit import WeightFit
from edgeclean.compression.goals import FileSize
from edgeclean.compression.latency_table import parse_latency_table
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.compression.tucker import factorise
from edgeclean.errors import BudgetError, RatioError, UsageError
from edgeclean.networks.cost import count_params
from edgeclean.networks.layers import conv_shapes, trace_layers
from exporters.onnx_exporter import ExportSettings, export_onnx


@pytest.fixture(scope="module")
def table():
    return made_up_table(plain())


def by_layer(plan):
    return {layer.layer: layer for layer in plan.layers}


@pytest.mark.parametrize(
    "goal", [{"ratio": 1.8}, {"speedup": 1.5}, {"latency_budget_ms": 0.3}, {"speedup": 2.0}]
)
@pytest.mark.parametrize("images", [None, some_images()])
def test_no_layer_is_slower_than_its_one_convolution(table, goal, images):
    network = decompose(plain(), DecomposeSettings())
    plan = choose_ranks(network, RankSettings(**goal), images=images, table=table)
    for layer in plan.layers:
        if layer.ranks is not None:
            assert layer.time_kind == "measured"
            assert layer.ns_after <= 0.9 * layer.ns_before
        elif layer.time_kind:
            assert layer.ns_after == layer.ns_before
    assert plan.ratio >= plan.ratio_asked
    shapes = conv_shapes(trace_layers(plain().module, (3, 16, 16)))
    for name, layer in by_layer(plan).items():
        if layer.ranks is not None:
            held = table.times(shapes[name])
            assert held.ns[layer.ranks] == layer.ns_after
            assert held.dense_ns == layer.ns_before
    assert truncate(network, plan, TruncateSettings()).history[-1].notes["latency_table"] == {
        "sha256": table.sha256,
        "device": "made up",
        "runtime": "none 1.0",
        "threads": 1,
        "batch": 1,
        "precision": "fp32",
        "network_ms": [plan.ns_before / 1e6, plan.ns_after / 1e6],
    }


def test_a_budget_of_time_is_met_at_the_least_harm(table):
    """Against every combination of the measured forms that gain a tenth of their layer's time."""
    network = plain()
    plan = choose_ranks(network, RankSettings(speedup=1.6), table=table)
    most = round(table.network.ms * 1e6) / 1.6
    assert plan.ns_after <= most
    shapes = conv_shapes(trace_layers(network.module, (3, 16, 16)))
    convs = {n: network.module.get_submodule(n) for n in shapes}
    groups = []
    for name, conv in convs.items():
        fit = WeightFit(factorise(conv.weight), (conv.out_channels, conv.in_channels))
        times = table.times(shapes[name])
        forms = [(times.dense_ns, 0.0)]
        forms += [
            (ns, fit.loss(ranks)) for ranks, ns in times.ns.items() if ns <= 0.9 * times.dense_ns
        ]
        front = [f for f in forms if not any(o[0] <= f[0] and o[1] < f[1] for o in forms)]
        groups.append(front)
    fixed = plan.ns_before - sum(layer.ns_before for layer in plan.layers)
    best = min(
        sum(loss for _, loss in combination)
        for combination in itertools.product(*groups)
        if fixed + sum(ns for ns, _ in combination) <= most
    )
    assert sum(layer.effect for layer in plan.layers) == pytest.approx(best, rel=1e-6)


def test_with_a_table_a_ratio_is_met_by_faster_forms(table):
    given = choose_ranks(plain(), RankSettings(ratio=2.0), table=table)
    quicker = choose_ranks(plain(), RankSettings(ratio=2.0, time_allowance=0.5), table=table)
    for plan in (given, quicker):
        assert 2.0 <= plan.ratio <= 2.04
    assert quicker.ns_after <= given.ns_after


def test_one_table_gives_one_plan(table):
    read = parse_latency_table(table.canonical(), where="table")
    plans = [
        choose_ranks(plain(), RankSettings(speedup=1.5), images=some_images(), table=one)
        for one in (table, read)
    ]
    assert [layer.as_json() for layer in plans[0].layers] == [
        layer.as_json() for layer in plans[1].layers
    ]


def test_layers_that_the_table_does_not_know_stay_whole(table):
    shapes = conv_shapes(trace_layers(plain().module, (3, 16, 16)))
    blocks = {s: forms for s, forms in table.blocks.items() if s != shapes["down"]}
    plan = by_layer(
        choose_ranks(plain(), RankSettings(ratio=1.2), table=made_up_table(plain(), blocks=blocks))
    )
    assert (plan["down"].ranks, plan["down"].reason) == (None, "not in the latency table")


def test_a_table_of_other_layers_is_refused(table):
    class Other(Plain):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 24, 5, padding=2)

    other = network_of(seeded(Other))
    with pytest.raises(UsageError, match="no latency table that holds this network's time"):
        choose_ranks(other, RankSettings(speedup=1.1), table=made_up_table(plain()))
    with pytest.raises(UsageError, match="knows none of this network's layers"):
        choose_ranks(plain(), RankSettings(ratio=1.1), table=made_up_table(plain(), blocks={}))
    with pytest.raises(UsageError, match="no latency table"):
        choose_ranks(plain(), RankSettings(speedup=1.1))


@pytest.mark.parametrize("name", ["speedup", "latency_budget_ms"])
def test_a_goal_out_of_reach_names_the_nearest_which_is_possible(table, name):
    beyond = {"speedup": 900.0, "latency_budget_ms": 1e-6}[name]
    with pytest.raises(RatioError, match="ask for --") as refusal:
        choose_ranks(plain(), RankSettings(**{name: beyond}), table=table)
    assert refusal.value.exit_code == 6
    word = f"ask for --{name.replace('_', '-')} "
    nearest = float(str(refusal.value).split(word)[1].split(" ")[0])
    plan = choose_ranks(plain(), RankSettings(**{name: nearest}), table=table)
    assert plan.ratio >= plan.ratio_asked


def test_a_budget_that_the_original_keeps_changes_nothing(table):
    plan = choose_ranks(plain(), RankSettings(latency_budget_ms=1e3), table=table)
    assert set(plan.ranks().values()) == {None}


def test_a_table_whose_layers_outlast_its_network_is_refused(table):
    tiny = type(table.network)(layers_sha256=table.network.layers_sha256, ms=0.001, spread_ms=0.0)
    with pytest.raises(UsageError, match="take longer than its whole network"):
        choose_ranks(plain(), RankSettings(speedup=1.1), table=made_up_table(plain(), network=tiny))


def test_overrides_that_were_not_measured_are_estimated(table):
    settings_ = RankSettings(ratio=1.05, overrides={"late": (13, 14)})
    late = by_layer(choose_ranks(plain(), settings_, table=table))["late"]
    assert (late.ranks, late.time_kind) == ((13, 14), "estimated")
    assert late.as_json()["time_kind"] == "estimated"
    assert 0 < late.ns_after <= late.ns_before


@pytest.mark.parametrize(
    "goals",
    list(
        itertools.combinations(
            [("ratio", 2.0), ("speedup", 2.0), ("latency_budget_ms", 1.0), ("size_budget", 9000)], 2
        )
    ),
)
def test_a_network_has_one_goal(goals):
    with pytest.raises(UsageError, match="a network has one goal"):
        RankSettings(**dict(goals))


@pytest.mark.parametrize(
    "wrong",
    [
        {"speedup": 0.9},
        {"speedup": math.nan},
        {"latency_budget_ms": 0.0},
        {"size_budget": 0},
        {"time_allowance": -0.1},
        {"speedup": 2.0, "measure": "params"},
    ],
)
def test_wrong_goals_are_refused(wrong):
    with pytest.raises(UsageError, match=r"must be|leave it out"):
        RankSettings(**wrong)


def test_a_size_budget_holds_for_the_file():
    network = plain()
    whole = len(export_onnx(network, ExportSettings()))
    overhead = whole - 4 * count_params(network.module) + 5000
    budget = round(0.7 * whole) + 5000
    file = FileSize(bytes_per_param=4.0, overhead_bytes=overhead)
    decomposed = decompose(network, DecomposeSettings())
    plan = choose_ranks(decomposed, RankSettings(size_budget=budget), file=file)
    cut = truncate(decomposed, plan, TruncateSettings())
    assert 0.9 * (budget - 5000) <= len(export_onnx(cut, ExportSettings())) <= budget
    with pytest.raises(RatioError, match="the graph alone"):
        choose_ranks(network, RankSettings(size_budget=100), file=file)
    with pytest.raises(BudgetError, match="--size-budget"):
        choose_ranks(network, RankSettings(size_budget=overhead + 400), file=file)
    with pytest.raises(UsageError, match="cannot be planned"):
        choose_ranks(network, RankSettings(size_budget=9000))
