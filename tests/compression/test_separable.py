"""Kernels as a Kx1 and a 1xK convolution: what they compute, cost and lose; how one is chosen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from factor_networks import network_of, seeded, some_images
from hypothesis import given, settings
from hypothesis import strategies as st
from latency_tables import made_up_table
from torch import Tensor, nn

from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.factorisation import (
    AXES,
    Separable,
    SeparableKernel,
    cost_of,
    factors_of,
    full_separable_rank,
    is_separated,
    merge_block,
    part_shapes,
    ranks_as_json,
    ranks_from,
)
from edgeclean.compression.fit import input_moments
from edgeclean.compression.goals import FileSize
from edgeclean.compression.latency_table import LatencyTable, LayerTimes, parse_latency_table
from edgeclean.compression.plan import RankPlan, choose_ranks
from edgeclean.compression.planned_network import planned_network
from edgeclean.compression.rank_grids import measured_grid, separable_grid, useful_rank
from edgeclean.compression.reach import check_layers_reach
from edgeclean.compression.separable import SeparableFit
from edgeclean.compression.settings import RankSettings, read_rank_file
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.config import settings_from
from edgeclean.errors import RatioError, UsageError
from edgeclean.measure.block_backends import chain_module
from edgeclean.networks.blocks import is_block
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.networks.shapes import conv_shape
from edgeclean.networks.state import LoadedNetwork
from edgeclean.report.layer_table import layer_rows, spectra
from edgeclean.stage_results import from_bytes, to_bytes
from exporters.onnx_exporter import export_onnx
from exporters.parity import check_parity

BOTH = ("tucker", "separable")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    """Convolutions with taps on both sides, of every stride, padding and dilation."""
    sides = st.tuples(st.integers(2, 4), st.integers(2, 4))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    paddings = [st.tuples(st.integers(0, 2), st.integers(0, 2)), st.just("valid")]
    if stride == (1, 1):
        paddings.append(st.just("same"))
    made = {
        "kernel_size": draw(sides),
        "stride": stride,
        "padding": draw(st.one_of(paddings)),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        "bias": draw(st.booleans()),
    }
    channels = draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 8]))
    return seeded(lambda: nn.Conv2d(*channels, **made), draw(st.integers(0, 99))).double()


def moment_of(conv: nn.Conv2d, seed: int = 0) -> Tensor:
    """Of correlated patches."""
    size = conv.weight[0].numel()
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    mix = mix * torch.logspace(0, -1, size, dtype=torch.float64)
    return mix @ mix.T / size


@settings(max_examples=30, deadline=None)
@given(conv=convolutions(), first=st.sampled_from(AXES), fitted=st.booleans())
def test_at_full_rank_it_is_the_convolution_and_costs_what_its_parts_cost(conv, first, fitted):
    image = torch.randn(2, conv.in_channels, 11, 9, dtype=torch.float64)
    shape = conv_shape(conv, (11, 9))
    full = full_separable_rank(shape, first)
    moment = moment_of(conv) if fitted else None
    fit = SeparableFit(conv.weight, first, most=full, moment=moment, ridge=0.01)
    assert fit.loss(full) == pytest.approx(0, abs=1e-9)
    kernel = fit.at(full)
    assert kernel.ranks == Separable(first=first, rank=full)
    block = kernel.to_block(conv)
    with torch.no_grad():
        expected = conv(image)
        torch.testing.assert_close(block(image), expected, rtol=0, atol=1e-8)
        torch.testing.assert_close(merge_block(block)(image), expected, rtol=0, atol=1e-8)
    assert is_block(block)
    assert type(factors_of(block)) is SeparableKernel
    parts = part_shapes(shape, kernel.ranks)
    assert chain_module(parts).double()(image).shape == expected.shape
    weights = count_params(block) - (conv.out_channels if conv.bias is not None else 0)
    macs = count_macs(block, tuple(image.shape[1:]))
    assert cost_of([shape], kernel.ranks) == (weights, macs)
    (layer,) = trace_layers(nn.Sequential(block), tuple(image.shape[1:]))
    assert (layer.shapes, layer.weight_shape) == ((shape,), tuple(conv.weight.shape))
    assert layer.macs == macs


@settings(max_examples=15, deadline=None)
@given(conv=convolutions(), first=st.sampled_from(AXES), choice=st.data())
def test_a_sum_of_outer_products_is_found_at_its_rank(conv, first, choice):
    """With any moment: what a kernel is made of is what it needs."""
    full = full_separable_rank(conv_shape(conv, (9, 9)), first)
    rank = choice.draw(st.integers(1, full))
    made = SeparableFit(conv.weight, first, most=full).at(rank).kernel()
    for moment in (None, moment_of(conv)):
        fit = SeparableFit(made, first, most=rank, moment=moment, ridge=0.01)
        assert fit.loss(rank) == pytest.approx(0, abs=1e-9)
        torch.testing.assert_close(fit.at(rank).kernel(), made, rtol=0, atol=1e-8)


@settings(max_examples=15, deadline=None)
@given(conv=convolutions(), first=st.sampled_from(AXES), most=st.integers(1, 30))
def test_the_loss_is_the_energy_that_is_lost(conv, first, most):
    """Of the outputs with a moment, of the weights without; whatever the highest rank asked for."""
    matrix = conv.weight.detach().flatten(1)
    full = full_separable_rank(conv_shape(conv, (9, 9)), first)
    for moment in (None, moment_of(conv)):
        fit = SeparableFit(conv.weight, first, most=min(most, full), moment=moment, ridge=1e-9)
        weigh = torch.eye(matrix.shape[1], dtype=torch.float64) if moment is None else moment
        total = float(((matrix @ weigh) * matrix).sum())
        losses = []
        for rank in range(1, min(most, full) + 1):
            gap = matrix - fit.at(rank).kernel().flatten(1)
            losses.append(fit.loss(rank))
            assert losses[-1] == pytest.approx(float(((gap @ weigh) * gap).sum()) / total, abs=1e-6)
        assert losses == sorted(losses, reverse=True)


def test_the_loss_of_the_weights_is_the_least_there_is():
    conv = seeded(lambda: nn.Conv2d(4, 6, (3, 2))).double()
    for first, regrouped in (
        ("vertical", conv.weight.permute(1, 2, 0, 3).reshape(12, 12)),
        ("horizontal", conv.weight.permute(1, 3, 0, 2).reshape(8, 18)),
    ):
        energies = torch.linalg.svdvals(regrouped.detach()).square()
        fit = SeparableFit(conv.weight, first, most=8)
        for rank in range(1, 9):
            left = float(energies[rank:].sum() / energies.sum())
            assert fit.loss(rank) == pytest.approx(left, abs=1e-9)


def test_inputs_and_weights_that_are_zero_still_give_kernels():
    conv = nn.Conv2d(3, 4, 3).double()
    zeros = torch.zeros(27, 27, dtype=torch.float64)
    fit = SeparableFit(conv.weight, "vertical", most=3, moment=zeros, ridge=0.01)
    assert bool(torch.isfinite(fit.at(3).kernel()).all())
    nn.init.zeros_(conv.weight)
    for moment in (None, zeros):
        fit = SeparableFit(conv.weight, "horizontal", most=3, moment=moment, ridge=0.01)
        assert fit.loss(1) == 0
        assert not bool(fit.at(1).kernel().any())


class Wide(nn.Module):
    """Strided, dilated, even and flat kernels, and one that pads by reflection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 24, 3, stride=(2, 1), padding=(2, 1), dilation=(2, 1), bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.even = nn.Conv2d(24, 16, (2, 4), padding="same")
        self.flat = nn.Conv2d(16, 16, (3, 1), padding=(1, 0))
        self.mirror = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.down(torch.relu(self.stem(images)))))
        features = torch.relu(self.mirror(self.flat(torch.relu(self.even(features)))))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def wide() -> LoadedNetwork:
    return network_of(seeded(Wide))


def separable_layers(plan: RankPlan) -> dict[str, Separable]:
    ranks = {layer.layer: layer.ranks for layer in plan.layers}
    return {name: one for name, one in ranks.items() if isinstance(one, Separable)}


@pytest.mark.parametrize("images", [None, some_images()])
@pytest.mark.parametrize(
    "asked", [{"ratio": 1.8, "factors": "weights"}, {"ratio": 2.0, "measure": "params"}]
)
def test_a_plan_of_separable_kernels_goes_through_to_onnx(images, asked):
    network = decompose(wide(), DecomposeSettings())
    plan = choose_ranks(network, RankSettings(forms=("separable",), **asked), images=images)
    chosen = separable_layers(plan)
    assert chosen
    assert set(chosen) <= {"stem", "down", "even"}
    assert {layer.layer for layer in plan.layers if layer.ranks} == set(chosen)
    truncated = truncate(network, plan, TruncateSettings())  # which holds the cost to the plan's
    assert plan.ratio >= asked["ratio"]
    for name, ranks in chosen.items():
        block = truncated.module.get_submodule(name)
        assert is_block(block)
        assert factors_of(block).ranks == ranks
    check_parity(truncated, export_onnx(truncated), torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("images", [None, some_images()])
def test_the_loss_in_a_plan_is_what_the_layers_outputs_lose(images):
    """Of one layer alone, by the moments of what flows into it, ridge and all."""
    network = decompose(wide(), DecomposeSettings())
    asked = RankSettings(ratio=1.3, forms=("separable",), sensitivity="energy", ridge=0.001)
    plan = choose_ranks(network, asked, images=images)
    planned = planned_network(
        network, (), images, most_images=96, ridge=None if images is None else 0.001
    )
    separated = [layer for layer in plan.layers if isinstance(layer.ranks, Separable)]
    assert separated
    for layer in separated:
        weight = planned.convs[layer.layer].weight.detach().double()
        weigh = torch.eye(weight[0].numel(), dtype=torch.float64)
        if planned.batch is not None:
            weigh = input_moments(planned.flow, layer.layer).own
            weigh = weigh + 0.001 * weigh.diagonal().mean() * torch.eye(len(weigh)).double()
        kernel = planned.fit(layer.layer, ["separable"]).at(layer.ranks).kernel().double()
        before, gap = weight.flatten(1), (weight - kernel).flatten(1)
        lost = float(((gap @ weigh) * gap).sum() / ((before @ weigh) * before).sum())
        assert layer.loss == layer.effect == pytest.approx(lost, rel=1e-3, abs=1e-5)


def narrow() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(),
        nn.Conv2d(6, 12, (1, 3)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


@settings(max_examples=5, deadline=None)
@given(
    size=st.integers(400, 800), seed=st.integers(0, 99), multiple=st.sampled_from([1, 2]),
    seen=st.booleans(),
)  # fmt: skip
def test_with_separable_kernels_no_plan_predicts_a_greater_loss(size, seed, multiple, seen):
    """At a budget that either may use less of, so that more choice can only help."""
    network = network_of(seeded(narrow, seed))
    file = FileSize(bytes_per_param=1.0, overhead_bytes=0)
    predicted = {}
    for forms in (("tucker",), ("separable",), BOTH):
        asked = RankSettings(
            size_budget=size, sensitivity="energy", forms=forms, rank_multiple=multiple
        )
        try:
            plan = choose_ranks(network, asked, images=some_images() if seen else None, file=file)
        except RatioError:
            continue
        assert plan.params_after <= size
        predicted[forms] = sum(layer.effect for layer in plan.layers)
    assert not predicted or BOTH in predicted
    assert all(predicted[BOTH] <= one + 1e-9 for one in predicted.values())


@pytest.mark.parametrize("images", [None, some_images()])
def test_a_layer_that_is_separable_becomes_so_where_that_form_is_asked_for(images):
    module = seeded(narrow)
    fit = SeparableFit(module[2].weight, "horizontal", most=3)
    module[2].weight.data.copy_(fit.at(3).kernel())
    network = decompose(network_of(module), DecomposeSettings())
    for forms in (("tucker",), BOTH, (*BOTH, "hidden")):
        plan = choose_ranks(network, RankSettings(ratio=1.5, forms=forms), images=images)
        chosen = separable_layers(plan).get("2")
        assert (chosen is not None) == ("separable" in forms)
        if chosen is not None:
            assert chosen.first == "horizontal"
        truncate(network, plan, TruncateSettings())


def test_small_ranks_leave_both_orders_to_choose_from():
    """A strided axis first leaves less to compute for the second."""
    shape = conv_shape(nn.Conv2d(16, 16, 3, stride=(2, 1), padding=1), (16, 16))
    costs = {first: cost_of([shape], Separable(first=first, rank=4))[1] for first in AXES}
    assert costs["vertical"] < costs["horizontal"]
    assert {one.first for one in separable_grid(shape, 1)} == {*AXES}
    assert useful_rank(shape, "vertical") == 24
    assert {one.rank for one in separable_grid(shape, 16)} == {16}
    assert separable_grid(conv_shape(nn.Conv2d(8, 8, (1, 3)), (9, 9)), 1) == []


@pytest.mark.parametrize("seen", [True, False])
def test_a_rank_that_is_asked_for_is_met_whatever_forms_there_are(seen, tmp_path: Path):
    path = tmp_path / "ranks.toml"
    path.write_text('stem = ["horizontal", 4]\ndown = [8, 6]\neven = ["vertical", 9]\n')
    listed = read_rank_file(path)
    assert listed.ranks["stem"] == Separable(first="horizontal", rank=4)
    asked = {name: tuple(ranks_as_json(one)) for name, one in listed.ranks.items()}
    chosen = RankSettings(ratio=1.0, overrides=asked, forms=("tucker",))
    assert chosen.overridden == listed.ranks
    network = decompose(wide(), DecomposeSettings())
    check_layers_reach(wide(), chosen)
    plan = choose_ranks(network, chosen, images=some_images() if seen else None)
    assert {name: plan.ranks()[name] for name in asked} == listed.ranks
    truncated = truncate(network, plan, TruncateSettings())
    told = {one["layer"]: one["ranks"] for one in truncated.history[-1].notes["layers"]}
    assert told["even"] == ["vertical", 9]
    assert told["down"] == [8, 6]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stem": ("vertical", 99)}, "must lie between 1 and 7"),
        ({"flat": ("vertical", 2)}, "3x1 kernel, which no Kx1 and 1xK replace"),
        ({"mirror": ("vertical", 2)}, "mirror cannot be given ranks: pads by 'reflect'"),
        ({"stem": ("vertical", 0)}, "from 1 to"),
    ],
)
def test_ranks_that_do_not_fit_are_refused_early_and_late(overrides, message):
    with pytest.raises(UsageError, match=message):
        check_layers_reach(wide(), RankSettings(ratio=1.0, overrides=overrides))
    with pytest.raises(UsageError, match=message):
        choose_ranks(wide(), RankSettings(ratio=1.0, overrides=overrides))


@pytest.mark.parametrize("entry", [["diagonal", 2], [2, "vertical"], [2], ["vertical", 2.0]])
def test_overrides_of_other_types_are_refused(entry):
    with pytest.raises(UsageError, match="overrides: stem"):
        settings_from(RankSettings, {"overrides": {"stem": entry}}, where="a file")


@pytest.mark.parametrize(
    "entry", ['"sideways", 3', '"vertical", 0', '"vertical", true', '"vertical", 3, 1',
              '3, "vertical"', '"vertical"'],
)  # fmt: skip
def test_rank_files_with_other_directions_are_refused(tmp_path: Path, entry):
    path = tmp_path / "ranks.toml"
    path.write_text(f"stem = [{entry}]\n")
    with pytest.raises(UsageError, match="vertical"):
        read_rank_file(path)


@pytest.mark.parametrize("forms", [("separable",), BOTH, ("separable", "hidden")])
def test_a_goal_is_judged_early_as_it_is_late(forms):
    network = wide()
    refusals = []
    for judge in (check_layers_reach, choose_ranks):
        with pytest.raises(RatioError) as refused:
            judge(network, RankSettings(ratio=500.0, forms=forms))
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]
    nearest = float(refusals[0].split("ask for --ratio ")[1].split(" ")[0])
    check_layers_reach(network, RankSettings(ratio=nearest, forms=forms))
    choose_ranks(network, RankSettings(ratio=nearest, forms=forms))
    with pytest.raises(RatioError):
        check_layers_reach(network, RankSettings(ratio=nearest + 0.02, forms=forms))


def table_of(network: LoadedNetwork) -> LatencyTable:
    return made_up_table(network, forms=BOTH)


def test_a_table_with_separable_kernels_is_read_back_and_chosen_by():
    network = wide()
    table = table_of(network)
    assert parse_latency_table(table.canonical(), where="table").canonical() == table.canonical()
    plan = choose_ranks(network, RankSettings(speedup=1.6, forms=BOTH), table=table)
    chosen = separable_layers(plan)
    assert chosen
    shapes = conv_shapes(trace_layers(network.module, (3, 16, 16)))
    for layer in plan.layers:
        if layer.layer in chosen:
            assert layer.time_kind == "measured"
            assert layer.ns_after == table.times(shapes[layer.layer]).ns[chosen[layer.layer]]
            assert layer.ns_after <= 0.9 * layer.ns_before
    without = choose_ranks(network, RankSettings(speedup=1.6, forms=("tucker",)), table=table)
    assert not separable_layers(without)
    goal = RankSettings(speedup=90.0, forms=BOTH)
    with pytest.raises(RatioError) as late:
        choose_ranks(network, goal, table=table)
    with pytest.raises(RatioError) as early:
        check_layers_reach(network, goal, table=table)
    assert str(early.value) == str(late.value)


def test_measured_ranks_save_a_tenth_and_times_between_are_those_of_the_next():
    shape = conv_shape(nn.Conv2d(32, 48, 3, padding=1), (14, 14))
    separable = [one for one in measured_grid(shape, BOTH) if isinstance(one, Separable)]
    assert {one.first for one in separable} == {*AXES}
    assert not any(isinstance(one, Separable) for one in measured_grid(shape))
    for one in separable:
        params, macs = cost_of([shape], one)
        assert params <= 0.9 * shape.params
        assert macs <= 0.9 * shape.macs
    vertical = [Separable(first="vertical", rank=rank) for rank in (4, 8, 16)]
    times = LayerTimes(dense_ns=100, ns={vertical[0]: 40, vertical[2]: 60, (8, 8): 10})
    assert times.at(vertical[0]) == (40, "measured")
    assert times.at(vertical[1]) == (60, "estimated")
    assert times.at(Separable(first="horizontal", rank=4)) == (100, "estimated")
    assert times.at((8, 7)) == (10, "estimated")


@pytest.mark.parametrize(
    ("ranks", "message"),
    [('["vertical", 9999]', "do not fit"), ('["up", 1]', "not a latency table"),
     ('[1, "vertical"]', "not a latency table"), ('["vertical", 0]', "not a latency table")],
)  # fmt: skip
def test_a_table_with_ranks_that_no_layer_has_is_refused(ranks, message):
    text = table_of(wide()).canonical().decode()
    start = text.index('"ranks": ["vertical"')
    end = text.index("]", start) + 1
    with pytest.raises(UsageError, match=message):
        parse_latency_table(f'{text[:start]}"ranks": {ranks}{text[end:]}'.encode(), where="t")


def test_a_flat_layer_has_no_separable_rank_in_a_table():
    table = table_of(wide())
    flat = next(one for one in table.blocks if not is_separated(one))
    odd = dataclasses.replace(table.blocks[flat][0], ranks=Separable(first="vertical", rank=1))
    wrong = dataclasses.replace(table, blocks={flat: (*table.blocks[flat], odd)})
    with pytest.raises(UsageError, match="do not fit"):
        parse_latency_table(wrong.canonical(), where="table")


def test_the_report_and_what_is_kept_tell_of_it():
    network = wide()
    plan = choose_ranks(
        network, RankSettings(ratio=1.8, forms=("separable",)), images=some_images()
    )
    assert to_bytes(from_bytes(to_bytes(plan))) == to_bytes(plan)
    assert from_bytes(to_bytes(plan)).ranks() == plan.ranks()
    after = truncate(decompose(network, DecomposeSettings()), plan, TruncateSettings())
    rows = {row.name: row for row in layer_rows(network, after)}
    for name, ranks in separable_layers(plan).items():
        row = rows[name]
        assert (row.fate, row.rank_out, row.rank_in) == ("factored", None, None)
        assert (row.separable_first, row.separable_rank) == (ranks.first, ranks.rank)
        height, width = row.shape[2:]
        first, second = (f"{height}x1", f"1x{width}")[:: 1 if ranks.first == "vertical" else -1]
        assert row.becomes == f"{first} to {ranks.rank}, {second}"
        assert row.macs_after < row.macs_before
    assert rows["head"].separable_rank is None
    curves = {one.name: one for one in spectra(network, None, after)}
    for name in separable_layers(plan):
        assert curves[name].rank is None
        assert len(curves[name].compressed) == len(curves[name].before)


def test_a_plan_whose_layer_has_another_kernel_is_refused():
    network = decompose(wide(), DecomposeSettings())
    plan = choose_ranks(network, RankSettings(ratio=1.5, forms=("separable",)))
    layers = (
        dataclasses.replace(one, ranks=Separable(first="vertical", rank=2))
        if one.layer == "flat" else one
        for one in plan.layers
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"\('vertical', 2\) do not fit flat"):
        truncate(network, dataclasses.replace(plan, layers=tuple(layers)), TruncateSettings())


def test_ranks_are_read_back_from_json():
    for ranks in (
        (3, 4),
        Separable(first="vertical", rank=7),
        Separable(first="horizontal", rank=1),
    ):
        assert ranks_from(ranks_as_json(ranks)) == ranks
    for entry in (["sideways", 2], [2, "vertical"], ["vertical", "horizontal"]):
        with pytest.raises(ValueError, match="are no ranks"):
            ranks_from(entry)


def test_layers_with_the_blocks_names_and_other_shapes_are_no_blocks():
    def named(*layers: nn.Module) -> nn.Sequential:
        block = nn.Sequential()
        for name, layer in zip(("core_vertical", "core_horizontal"), layers, strict=True):
            block.add_module(name, layer)
        return block

    across = nn.Conv2d(4, 8, (1, 3), padding=(0, 1), stride=(1, 2))
    assert is_block(named(nn.Conv2d(3, 4, (3, 1), padding=(1, 0), bias=False), across))
    for down in (
        nn.Conv2d(3, 4, (3, 1), padding=(1, 0)),
        nn.Conv2d(3, 4, (3, 3), padding=(1, 0), bias=False),
        nn.Conv2d(3, 4, (3, 1), padding=(1, 1), bias=False),
        nn.Conv2d(3, 4, (3, 1), stride=2, bias=False),
        nn.Conv2d(3, 4, (3, 1), padding="same", bias=False),
        nn.Conv2d(3, 4, (3, 1), padding=(1, 0), padding_mode="circular", bias=False),
        nn.Identity(),
    ):
        assert not is_block(named(down, across))
