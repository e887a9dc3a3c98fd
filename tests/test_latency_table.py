import itertools
import json
import math
import time

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latency_tables import made_up_table
from onnx import numpy_helper
from test_decompose import network_of, seeded
from test_ranks import Plain, plain, some_images
from torch import nn

from edgeclean.cost import count_macs, count_params
from edgeclean.errors import BudgetError, RatioError, UsageError
from edgeclean.factors.blocks import block_of, factorize
from edgeclean.factors.decompose import DecomposeSettings, decompose
from edgeclean.factors.fits import WeightFit
from edgeclean.ranks import form_grid as grid
from edgeclean.ranks.choose import RankSettings, choose_ranks
from edgeclean.ranks.form_grid import chain, form_grid, rank_steps
from edgeclean.ranks.goals import FileSize
from edgeclean.ranks.knapsack import Item, choose, choose_quick
from edgeclean.ranks.latency_file import MAX_FILE_BYTES, parse_latency_table, read_latency_table
from edgeclean.ranks.latency_table import TimedForm
from edgeclean.ranks.signatures import layer_signatures, signature_of
from edgeclean.ranks.truncate import TruncateSettings, truncate
from edgeclean.runtime import block_latency, quiet
from edgeclean.runtime.block_backends import OnnxBackend, chain_model, chain_module, open_backend
from edgeclean.runtime.block_latency import BlockLatencySettings, measure_table
from exporters.onnx_exporter import ExportSettings, export_onnx


@pytest.fixture(scope="module")
def table():
    return made_up_table(plain())


# signatures and forms


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(8, 12, 3, padding=1, stride=2),
        nn.Conv2d(8, 12, (1, 4), padding="same", dilation=(1, 2)),
        nn.Conv2d(8, 12, 5, padding="valid"),
        nn.Conv2d(24, 16, 1, stride=2),
    ],
)
def test_a_signature_knows_its_layers_output_and_forms_cost(conv):
    signature = signature_of(conv, (13, 9))
    image = torch.zeros(1, conv.in_channels, 13, 9)
    assert signature.image_out() == tuple(conv(image).shape[2:])
    fit = WeightFit(factorize(conv.weight), (conv.out_channels, conv.in_channels))
    for ranks in [(8, 8)] if signature.pointwise else [(4, 4), (12, 4), (4, 8)]:
        block = block_of(conv, fit.factors(ranks))
        made = chain(signature, ranks)
        assert len(made) == len(block)
        assert sum(grid._macs(one) for one in made) == count_macs(block, tuple(image.shape[1:]))
        weights = count_params(block) - conv.out_channels  # all but the bias
        assert sum(grid._params(one) for one in made) == weights
        assert chain_module(made)(image).shape == conv(image).shape


def test_layers_that_run_twice_or_never_have_no_signature():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice, self.never = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, images):
            return self.twice(self.twice(self.once(input=images)))

    assert set(layer_signatures(Odd(), (3, 5, 7))) == {"once"}


def test_the_grid_only_has_forms_that_save_a_tenth():
    signature = signature_of(nn.Conv2d(64, 128, 3, padding=1, stride=2), (14, 14))
    forms = form_grid(signature)
    assert len(forms) == len(set(forms)) > 10
    for ranks in forms:
        for cost in (grid._macs, grid._params):
            assert sum(map(cost, chain(signature, ranks))) <= 0.9 * cost(signature)


@pytest.mark.parametrize("channels", [1, 2, 3, 8, 16, 24, 64, 100, 512, 2048])
def test_rank_steps_rise_to_all_channels_by_an_eighth(channels):
    steps = rank_steps(channels)
    assert steps[-1] == channels
    assert all(
        low < high <= max(low + 16, 1.125 * low + 8) for low, high in itertools.pairwise(steps)
    )


# the file


def test_a_table_survives_its_file(table, tmp_path):
    path = tmp_path / "table.json"
    path.write_bytes(table.canonical())
    read = read_latency_table(path)
    assert read == table
    assert read.sha256 == table.sha256
    assert json.loads(path.read_bytes())["format"] == "edgeclean-latency-table-1"
    path.write_text(json.dumps(json.loads(path.read_bytes())))  # another form of the same table
    assert read_latency_table(path).sha256 == table.sha256


def test_another_time_is_another_table(table):
    signature = next(iter(table.blocks))
    first, *rest = table.blocks[signature]
    slower = TimedForm(ranks=first.ranks, ms=first.ms + 1e-6, spread_ms=first.spread_ms)
    other = made_up_table(plain(), blocks={**table.blocks, signature: (slower, *rest)})
    assert other.sha256 != table.sha256


def _changed(change):
    document = json.loads(made_up_table(plain()).canonical())
    change(document)
    return json.dumps(document).encode()


def _block(document):
    return document["blocks"][0]


HOSTILE = {
    "empty": (b"", "not a JSON"),
    "not text": (b"\xff\xfe", "not a JSON"),
    "deep": (b"[" * 200_000, "not a JSON"),
    "long number": (b'{"batch": ' + b"9" * 10_000 + b"}", "not a JSON"),
    "nan": (b'{"batch": NaN}', "NaN"),
    "repeated key": (b'{"batch": 1, "batch": 2}', "given twice"),
    "a list": (b"[]", "the top level"),
    "unknown key": (_changed(lambda d: d.update(extra=1)), "extra"),
    "other format": (_changed(lambda d: d.update(format="x")), "format"),
    "no blocks": (_changed(lambda d: d.pop("blocks")), "blocks"),
    "zero threads": (_changed(lambda d: d.update(threads=0)), "threads"),
    "infinite": (
        _changed(lambda d: d["network"].update(ms=0.125)).replace(b"0.125", b"1e999"),
        "ms",
    ),
    "negative": (_changed(lambda d: _block(d)["forms"][0].update(ms=-1.0)), "ms"),
    "no ranks": (_changed(lambda d: _block(d)["forms"][0].pop("ranks")), "ranks"),
    "three ranks": (_changed(lambda d: _block(d)["forms"][1].update(ranks=[1, 1, 1])), "ranks"),
    "rank zero": (_changed(lambda d: _block(d)["forms"][1].update(ranks=[0, 1])), "ranks"),
    "huge rank": (_changed(lambda d: _block(d)["forms"][1].update(ranks=[999, 1])), "do not fit"),
    "form twice": (_changed(lambda d: _block(d)["forms"].append(_block(d)["forms"][1])), "twice"),
    "layer twice": (_changed(lambda d: d["blocks"].append(_block(d))), "same layer"),
    "no whole": (_changed(lambda d: _block(d)["forms"].pop(0)), "lacks the one convolution"),
    "true": (_changed(lambda d: _block(d)["forms"][0].update(ms=True)), "ms"),
    "long name": (_changed(lambda d: d.update(device="x" * 10_000)), "device"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tables_are_refused_in_one_line(name):
    contents, words = HOSTILE[name]
    with pytest.raises(UsageError, match=words) as refusal:
        parse_latency_table(contents, where="table.json")
    assert refusal.value.exit_code == 2
    assert str(refusal.value).startswith("table.json: ")
    assert len(str(refusal.value)) < 600


def test_a_missing_or_huge_table_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_latency_table(tmp_path / "none.json")
    (tmp_path / "huge.json").write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(UsageError, match="larger than"):
        read_latency_table(tmp_path / "huge.json")


# the choice


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(
        st.lists(
            st.builds(Item, st.integers(0, 40), st.floats(0, 10, width=16), st.integers(1, 1000)),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=4,
    ),
    budget=st.integers(1, 150),
    allowance=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_a_quick_choice_is_within_the_budget_and_the_allowance(groups, budget, allowance):
    best, quick = (choose(groups, budget), choose_quick(groups, budget, 0, allowance=allowance))
    assert (best is None) == (quick is None)
    if best is None:
        return
    cost, effect, time = (
        [
            sum(getattr(g[i], name) for g, i in zip(groups, chosen, strict=True))
            for chosen in (best, quick)
        ]
        for name in ("cost", "effect", "time")
    )
    assert cost[1] <= budget
    assert effect[1] <= (1 + allowance) * effect[0] + 1e-9
    assert time[1] <= time[0]


def test_time_that_costs_little_is_taken():
    groups = [[Item(10, 1.0, 100), Item(10, 1.05, 40)], [Item(10, 1.0, 100), Item(10, 2.0, 90)]]
    assert choose_quick(groups, 20, 0, allowance=0.1) == (1, 0)
    assert choose_quick(groups, 20, 0, allowance=0.0) == (0, 0)


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
    signatures = layer_signatures(plain().module, (3, 16, 16))
    for name, layer in by_layer(plan).items():
        if layer.ranks is not None:
            held = table.times(signatures[name])
            assert held.forms_ns[layer.ranks] == layer.ns_after
            assert held.whole_ns == layer.ns_before
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
    signatures = layer_signatures(network.module, (3, 16, 16))
    convs = {n: network.module.get_submodule(n) for n in signatures}
    groups = []
    for name, conv in convs.items():
        fit = WeightFit(factorize(conv.weight), (conv.out_channels, conv.in_channels))
        times = table.times(signatures[name])
        forms = [(times.whole_ns, 0.0)]
        forms += [
            (ns, fit.loss(ranks))
            for ranks, ns in times.forms_ns.items()
            if ns <= 0.9 * times.whole_ns
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
    signatures = layer_signatures(plain().module, (3, 16, 16))
    blocks = {s: forms for s, forms in table.blocks.items() if s != signatures["down"]}
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


# measuring


def test_a_form_in_onnx_computes_what_it_does_in_pytorch():
    signature = signature_of(nn.Conv2d(8, 16, 3, padding=1, stride=2), (9, 9))
    made = chain(signature, (4, 4))
    session = onnxruntime.InferenceSession(chain_model(made, 2), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((2, 8, 9, 9), dtype=np.float32)
    module = chain_module(made).eval()
    graph = onnx.load_from_string(chain_model(made, 2)).graph
    weights = {one.name: numpy_helper.to_array(one).copy() for one in graph.initializer}
    for place in range(len(made)):
        conv = module.get_submodule(f"conv{place}")
        conv.weight.data = torch.from_numpy(weights[f"weight{place}"])
    module.get_submodule(f"conv{len(made) - 1}").bias.data.zero_()
    with torch.no_grad():
        expected = module(torch.from_numpy(images))
    (computed,) = session.run(None, {"at0": images})
    assert np.allclose(computed, expected.numpy(), atol=1e-4)
    assert np.abs(computed).mean() > 0.01  # random weights keep their scale


class Counted:
    """A place for rows that counts."""

    def __init__(self):
        self.rows, self.hits = {}, 0

    def get(self, key):
        self.hits += key in self.rows
        return self.rows.get(key)

    def put(self, key, contents):
        self.rows[key] = contents


QUICK = BlockLatencySettings(rounds=5, layer_seconds=0.05)


def test_a_measured_table_has_all_forms_and_is_measured_once():
    network = plain()
    model = export_onnx(network, ExportSettings())
    layers = {"stem": (), "down": ((5, 7),), "point": (), "late": ()}
    kept = Counted()
    tables = [
        measure_table(network, layers, model=model, settings=QUICK, kept=kept) for _ in range(2)
    ]
    assert tables[0].canonical() == tables[1].canonical()
    assert kept.hits == len(kept.rows) == 5
    signatures = layer_signatures(network.module, (3, 16, 16))
    assert set(tables[0].blocks) == set(signatures.values())
    assert tables[0].times(signatures["down"]).of((5, 7))[1] == "measured"
    assert tables[0].network.ms > 0
    read = parse_latency_table(tables[0].canonical(), where="table")
    assert read == tables[0]
    plan = choose_ranks(network, RankSettings(ratio=1.1), table=read)
    assert plan.table["sha256"] == read.sha256


def test_forms_take_turns_and_the_first_moves_on():
    order = []
    runs = [lambda place=place: order.append(place) or 1.0 for place in range(3)]
    found = block_latency._rounds(runs, BlockLatencySettings(rounds=6))
    assert found.shape == (6, 3)
    assert order == [0, 1, 2, 0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2, 1, 2, 0, 2, 0, 1]


def busy(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_one_thread_is_timed_by_what_it_computes():
    assert quiet.milliseconds(lambda: time.sleep(0.2), threads=1) < 100
    assert quiet.milliseconds(lambda: busy(0.05), threads=1) == pytest.approx(50, rel=0.2)


@pytest.mark.parametrize(("interrupted", "runs", "ms"), [(0, 1, 9), (3, 4, 6), (99, 8, 2)])
def test_a_run_that_was_interrupted_is_made_again(monkeypatch, interrupted, runs, ms):
    """Runs take 9, 8, 7, ... ms; where every one is interrupted, the shortest of eight counts."""
    made, clock_ns, switches = [0], [0], [0]

    def run():
        made[0] += 1
        clock_ns[0] += (10 - made[0]) * 1_000_000
        switches[0] += made[0] <= interrupted

    monkeypatch.setattr(quiet.time, "perf_counter_ns", lambda: clock_ns[0])
    monkeypatch.setattr(quiet, "_interruptions", lambda: switches[0])
    assert quiet.milliseconds(run, threads=2) == ms
    assert made == [runs]


def test_a_larger_layer_takes_longer():
    backend = open_backend("cpu", threads=1, batch=1)
    assert isinstance(backend, OnnxBackend)
    small, large = ((signature_of(nn.Conv2d(c, c, 3, padding=1), (28, 28)),) for c in (16, 128))
    runs = backend.open([small, large])
    times = block_latency._rounds(runs, BlockLatencySettings(rounds=9))
    assert np.median(times[:, 1]) > 5 * np.median(times[:, 0])


def test_without_a_gpu_torch_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Exception, match="no CUDA device") as refusal:
        open_backend("torch-cuda", threads=1, batch=1)
    assert refusal.value.exit_code == 7


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"rounds": 0}, {"layer_seconds": math.inf}])
def test_impossible_ways_to_measure_are_refused(wrong):
    with pytest.raises(UsageError, match="must be"):
        BlockLatencySettings(**wrong)
