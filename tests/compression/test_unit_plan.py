"""Hidden channels in the plan: exact costs, the asked ratio, and a network that computes it."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latency_tables import made_up_ms, made_up_table, table_with_cuts
from unit_networks import (
    ACTIVATIONS,
    KINDS,
    Drawn,
    as_network,
    drawn_network,
    images_of,
    through_onnx,
)

from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.finetune import FinetuneSettings, finetune
from edgeclean.compression.knapsack import Item, Tie, choose, least_cost
from edgeclean.compression.latency_table import parse_latency_table
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.compression.planned_network import planned_network, put_
from edgeclean.compression.reach import check_layers_reach
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.compression.unit_candidates import kept_counts
from edgeclean.config import settings_from
from edgeclean.errors import RatioError, UsageError
from edgeclean.load.architectures import build_architecture
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.pixels import normalize
from edgeclean.networks.state import ModelSpec
from edgeclean.report.layer_table import layer_rows, spectra
from edgeclean.stage_results import from_bytes, to_bytes

HIDDEN = ("hidden",)


def truncated(network, plan):
    return truncate(decompose(network, DecomposeSettings()), plan, TruncateSettings())


@settings(max_examples=6, deadline=None)
@given(
    drawn=st.builds(
        Drawn,
        kind=st.sampled_from(KINDS),
        hidden=st.sampled_from([16, 24, 40]),
        image=st.sampled_from([(3, 8, 8), (1, 6, 10)]),
        norm=st.booleans(),
        activation=st.sampled_from(sorted(ACTIVATIONS)),
        seed=st.integers(0, 10**6),
    ),
    measure=st.sampled_from(["macs", "params"]),
    forms=st.sampled_from([HIDDEN, ("tucker", "hidden")]),
    seen=st.booleans(),
)
def test_the_network_costs_what_was_planned(drawn, measure, forms, seen):
    network = drawn_network(drawn)
    asked = RankSettings(ratio=1.5, measure=measure, forms=forms, images=6)
    images = images_of(network) if seen else None
    try:
        plan = choose_ranks(network, asked, images=images)
    except RatioError:
        with pytest.raises(RatioError):
            check_layers_reach(network, asked)
        return
    check_layers_reach(network, asked)
    module = truncated(network, plan).module
    shape = network.spec.input_shape
    assert count_macs(module, shape) == plan.macs_after
    assert count_params(module) == plan.params_after
    assert plan.ratio >= 1.5
    outputs = module(torch.rand(2, *shape))
    assert outputs.shape == (2, 5)
    assert bool(torch.isfinite(outputs).all())


def test_a_graph_from_onnx_is_cut_too():
    network = through_onnx(drawn_network(Drawn(kind="squeeze", hidden=40)))
    plan = choose_ranks(network, RankSettings(ratio=2.0, forms=HIDDEN), images=images_of(network))
    module = truncated(network, plan).module
    assert count_macs(module, network.spec.input_shape) == plan.macs_after
    assert len(plan.units) == 2


def _appending(seen):
    return lambda _layer, _inputs, output: seen.append(output)


@pytest.mark.parametrize("kind", ["inverted", "basic", "bottleneck", "chain"])
def test_the_loss_foretold_is_that_of_the_consumers_outputs(kind):
    network = drawn_network(Drawn(kind=kind, hidden=16, image=(3, 6, 6)))
    planned = planned_network(
        network, (), images_of(network, 200), most_images=200, ridge=1e-3, hidden=True
    )
    units = [one for one in planned.units if one.spread == 1]
    assert units
    for unit in units:
        moments = planned.covariances(unit)
        fit = planned.hidden_fit(unit, 1, moments)
        consumer = planned.module.get_submodule(unit.consumer)
        seen: list[torch.Tensor] = []
        handle = consumer.register_forward_hook(_appending(seen))
        bias = 0.0 if consumer.bias is None else consumer.bias.detach()[None, :, None, None]
        with torch.no_grad():
            planned.module(planned.batch)
            weight, own = consumer.weight, consumer.bias
            put_(consumer, planned.refit(unit, unit.consumer, fit.kept(8), moments[unit.consumer]))
            planned.module(planned.batch)
        handle.remove()
        consumer.weight, consumer.bias = weight, own
        lost = float((seen[1] - seen[0]).square().sum() / (seen[0] - bias).square().sum())
        assert fit.loss(8) == pytest.approx(lost, rel=0.05, abs=1e-4), unit.consumer


def test_all_channels_kept_is_the_network_itself():
    network = drawn_network(Drawn(kind="squeeze"))
    plan = choose_ranks(network, RankSettings(ratio=1.0), images=images_of(network))
    assert plan.units == ()
    images = torch.rand(2, *network.spec.input_shape)
    given, expected = truncated(network, plan).module(images), network.module(images)
    assert torch.allclose(given, expected, atol=1e-4)


def test_dead_channels_go_for_nothing():
    """A third of the channels are zero, or constant, behind the activation: outputs stay."""
    network = drawn_network(Drawn(kind="inverted", hidden=24, image=(3, 8, 8), activation="relu6"))
    with torch.no_grad():
        for place in ("l2", "l4"):
            norm = network.module.get_submodule(f"{place}.inner.4")
            norm.weight[:8] = 0
            norm.bias[:4], norm.bias[4:8] = -1.0, 2.5
    plan = choose_ranks(
        network,
        RankSettings(ratio=1.2, forms=HIDDEN, keep=("l0",)),
        images=images_of(network, 30),
    )
    assert [len(unit.kept) for unit in plan.units] == [16, 16]
    assert max(unit.effect for unit in plan.units) < 1e-6
    images = normalize(images_of(network, 5).pixels, network.spec)
    with torch.no_grad():
        given, expected = truncated(network, plan).module(images), network.module(images)
    assert torch.allclose(given, expected, atol=1e-4)


def test_what_is_kept_or_has_ranks_of_its_own_is_not_cut():
    network = drawn_network(Drawn(kind="basic", hidden=40))
    first, second = "l2.inner.0", "l2.inner.3"
    for asked in (RankSettings(keep=(second,)), RankSettings(overrides={first: (4, 4)})):
        plan = choose_ranks(network, dataclasses.replace(asked, ratio=1.5))
        assert first not in {unit.producer for unit in plan.units}
    kept = decompose(network, DecomposeSettings(keep=(second,)))
    plan = choose_ranks(kept, RankSettings(ratio=1.5))
    assert first not in {unit.producer for unit in plan.units}


def test_forms_are_what_was_asked():
    network = drawn_network(Drawn(kind="basic", hidden=40))
    ranks = choose_ranks(network, RankSettings(ratio=2.0, forms=("tucker",)))
    assert ranks.units == ()
    cut = choose_ranks(network, RankSettings(ratio=2.0, forms=HIDDEN))
    assert cut.units
    assert set(cut.ranks().values()) == {None}
    with pytest.raises(UsageError, match="forms has 'hidden' twice"):
        RankSettings(forms=("tucker", "hidden", "hidden"))
    with pytest.raises(UsageError, match="one of tucker, hidden"):
        settings_from(RankSettings, {"forms": ["wide"]}, where="options")
    with pytest.raises(UsageError, match="forms has 0 entries"):
        RankSettings(forms=())


@pytest.mark.parametrize("kind", ["basic", "inverted"])
@pytest.mark.parametrize("ratio", [1.6, 3.0])
def test_channels_go_only_where_that_changes_the_outputs_less(kind, ratio):
    """Judged on images between those that were fitted to."""
    network = drawn_network(Drawn(kind=kind, hidden=40, seed=3))
    images = images_of(network, 24)
    others = normalize(images.pixels[1::2], network.spec)
    changes = []
    for forms in (("tucker", "hidden"), ("tucker",)):
        asked = RankSettings(ratio=ratio, forms=forms, images=12)
        try:
            plan = choose_ranks(network, asked, images=images)
        except RatioError:
            assert forms == ("tucker",)
            continue
        with torch.no_grad():
            pair = (network.module(others), truncated(network, plan).module(others))
            before, after = (one - one.mean(1, keepdim=True) for one in pair)
        changes.append(float((after - before).square().sum()))
    assert changes[0] <= 1.001 * changes[-1]


def test_counts_are_multiples_and_save_enough():
    assert kept_counts(96, RankSettings()) == (*range(8, 88, 8), 96)
    assert kept_counts(96, RankSettings(rank_multiple=32)) == (32, 64, 96)
    assert kept_counts(12, RankSettings()) == (8, 12)
    assert len(kept_counts(1280, RankSettings())) == 17


def test_mobilenet_v2_reaches_four_times_fewer_macs():
    """Its depthwise layers cannot be factored, nor its thin 1x1 ones by much."""
    spec = ModelSpec(
        architecture="mobilenet-v2",
        input_shape=(3, 96, 96),
        classes=10,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    with torch.random.fork_rng():
        module = build_architecture("mobilenet-v2", spec, ())
    network = dataclasses.replace(as_network(module, (3, 96, 96)), spec=spec)
    asked = RankSettings(ratio=4.0, rank_multiple=8)
    with pytest.raises(RatioError, match=r"is 3\.\d\d times smaller"):
        check_layers_reach(network, dataclasses.replace(asked, forms=("tucker",)))
    check_layers_reach(network, asked)
    with pytest.raises(RatioError, match=r"is 2\d\.\d\d times smaller"):
        check_layers_reach(network, dataclasses.replace(asked, ratio=99.0))


@pytest.mark.parametrize("kind", ["basic", "chain"])
def test_times_of_fewer_channels_are_the_tables(kind):
    network = drawn_network(Drawn(kind=kind, hidden=64, image=(3, 12, 12)))
    table = table_with_cuts(network)
    assert parse_latency_table(table.canonical(), where="table").blocks == table.blocks
    asked = RankSettings(speedup=1.5, forms=HIDDEN)
    check_layers_reach(network, asked, table=table)
    plan = choose_ranks(network, asked, images=images_of(network), table=table)
    assert plan.units
    assert plan.ratio >= 1.5
    for layer in plan.layers:
        if layer.channels is not None:
            whole = planned_network(network, (), None, most_images=1, ridge=None)
            shape = whole.layers[layer.layer].shapes[0]
            out, into = layer.channels
            times = table.cut_times(shape)
            assert times is not None
            assert (layer.ns_after, layer.time_kind) == times.at((out, into))
            smaller = dataclasses.replace(shape, channels_out=out, channels_in=into)
            if layer.time_kind == "measured":
                assert layer.ns_after == round(1e6 * made_up_ms(smaller, None))
            assert layer.ns_after <= layer.ns_before
    module = truncated(network, plan).module
    assert count_macs(module, network.spec.input_shape) == plan.macs_after


def test_a_table_without_fewer_channels_cuts_nothing():
    network = drawn_network(Drawn(kind="basic", hidden=64))
    table = made_up_table(network)
    assert choose_ranks(network, RankSettings(ratio=1.5), table=table).units == ()


def test_the_layers_say_how_many_channels_are_left():
    network = drawn_network(Drawn(kind="inverted", hidden=40))
    plan = choose_ranks(network, RankSettings(ratio=2.0, forms=HIDDEN, keep=("l0",)))
    after = truncated(network, plan)
    rows = {row.name: row for row in layer_rows(network, after)}
    left = len(plan.units[0].kept)
    for name in ("l2.inner.0", "l2.inner.3", "l2.inner.6"):
        assert rows[name].fate == "cut"
        assert rows[name].reason == ""
        assert rows[name].becomes == f"hidden {left} of 40"
    assert rows["l0"].fate == "one convolution"
    assert rows["l0"].reason == "named by --keep"
    assert rows["l0"].becomes == ""
    assert spectra(network, None, after)
    notes = after.history[-1].notes["units"]
    assert notes[0]["hidden"] == [40, left]


def test_a_plan_is_kept_and_taken_up_again():
    network = drawn_network(Drawn(kind="bottleneck", hidden=40))
    plan = choose_ranks(network, RankSettings(ratio=2.0, forms=HIDDEN), images=images_of(network))
    again = from_bytes(to_bytes(plan))
    assert [unit.as_json() for unit in again.units] == [unit.as_json() for unit in plan.units]
    images = torch.rand(2, *network.spec.input_shape)
    assert torch.equal(
        truncated(network, again).module(images), truncated(network, plan).module(images)
    )


def test_a_plan_for_other_channels_is_refused():
    plan = choose_ranks(
        drawn_network(Drawn(kind="basic", hidden=40)), RankSettings(ratio=2.0, forms=HIDDEN)
    )
    other = decompose(drawn_network(Drawn(kind="basic", hidden=24)), DecomposeSettings())
    with pytest.raises(UsageError, match="has no such channels"):
        truncate(other, plan, TruncateSettings())


@pytest.mark.parametrize("kind", ["inverted", "chain"])
def test_recovery_compares_the_channels_that_are_left(kind):
    """At a cut that loses nothing the student starts at a distance of nothing."""
    network = drawn_network(Drawn(kind=kind, hidden=24))
    images = images_of(network, 16)
    plan = choose_ranks(network, RankSettings(ratio=1.5, forms=HIDDEN), images=images)
    student = truncated(network, plan)
    assert student.channels
    length = FinetuneSettings(steps=40, batch_size=8)
    tuned = finetune(student, network, images, length, seed=0)
    notes = tuned.history[-1].notes
    assert notes["loss_last"] < notes["loss_first"]


def every_choice(groups, ties):
    for one in itertools.product(*(range(len(group)) for group in groups)):
        chosen = [group[index] for group, index in zip(groups, one, strict=True)]
        if all(
            chosen[tie.one[0]].labels[tie.one[1]] == chosen[tie.other[0]].labels[tie.other[1]]
            for tie in ties
        ):
            yield chosen


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(
        st.tuples(st.integers(0, 40), st.floats(0, 10, width=16)), min_size=15, max_size=15
    ),
    budget=st.integers(10, 120),
    counts=st.sampled_from([(1, 2), (1, 2, 3)]),
)
def test_a_tied_choice_is_the_best_that_agrees(numbers, budget, counts):
    """A chain: two units of channels, and a layer between them that has both."""
    drawn = iter(numbers)
    units = [[Item(*next(drawn), labels=(count, 0)) for count in counts] for _ in range(2)]
    middle = [Item(*next(drawn), labels=pair) for pair in itertools.product(counts, counts)]
    groups, ties = [middle, *units], [Tie((1, 0), (0, 0)), Tie((2, 0), (0, 1))]
    every = list(every_choice(groups, ties))
    costs = [sum(item.cost for item in one) for one in every]
    assert least_cost(groups, ties) == min(costs)
    chosen = choose(groups, budget, ties=ties)
    fitting = [one for one, cost in zip(every, costs, strict=True) if cost <= budget]
    if chosen is None:
        assert not fitting
        return
    picked = [group[index] for group, index in zip(groups, chosen, strict=True)]
    assert picked in every
    assert sum(item.cost for item in picked) <= budget
    assert sum(item.effect for item in picked) == pytest.approx(
        min(sum(item.effect for item in one) for one in fitting)
    )
