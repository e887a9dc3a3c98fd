import dataclasses

import pytest
import torch
from factor_networks import Plain, Stem, network_of, plain, seeded, some_images
from torch import nn

from edgeclean.compression.clamp import ScaleSettings, scale
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.factorisation import merged_module
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.compression.truncate import TruncateSettings, truncate
from edgeclean.errors import RatioError, UsageError
from edgeclean.networks.blocks import is_block
from edgeclean.networks.cost import count_macs, count_params


def decomposed(module=Plain):
    return decompose(network_of(seeded(module)), DecomposeSettings())


def test_the_leading_ranks_are_kept():
    network = decomposed()
    plan = choose_ranks(network, RankSettings(ratio=1.2, overrides={"late": (5, 7)}))
    late, source = truncate(network, plan, TruncateSettings()).module.late, network.module.late
    assert torch.equal(late.core.weight, source.core.weight[:5, :7])
    assert torch.equal(late.reduce.weight, source.reduce.weight[:7])
    assert torch.equal(late.expand.weight, source.expand.weight[:, :5])
    assert torch.equal(late.expand.bias, source.expand.bias)
    assert late.core.padding == (1, 0)


def test_a_pointwise_layer_keeps_its_leading_rank():
    network = decomposed()
    plan = choose_ranks(network, RankSettings(ratio=1.2, overrides={"point": (6, 6)}))
    point = truncate(network, plan, TruncateSettings()).module.point
    torch.testing.assert_close(point.reduce.weight, network.module.point.reduce.weight[:6])
    assert torch.equal(point.expand.weight, network.module.point.expand.weight[:, :6])


@pytest.mark.parametrize(
    ("ranks", "names"), [((48, 20), ["reduce", "core"]), ((20, 64), ["core", "expand"])]
)
def test_a_whole_mode_has_no_factor_and_computes_the_same(ranks, names):
    network = decomposed()
    plan = choose_ranks(network, RankSettings(ratio=1.1, overrides={"late": ranks}))
    late, source = truncate(network, plan, TruncateSettings()).module.late, network.module.late
    assert [name for name, _ in late.named_children()] == names
    rank_out, rank_in = ranks
    kernel = torch.einsum(
        "rshw,or,si->oihw",
        source.core.weight[:rank_out, :rank_in],
        source.expand.weight[:, :rank_out, 0, 0],
        source.reduce.weight[:rank_in, :, 0, 0],
    )
    torch.testing.assert_close(
        merged_module(nn.Sequential(late))[0].weight, kernel, rtol=0, atol=1e-5
    )
    assert next(reversed(list(late))).bias is not None


def test_layers_without_ranks_become_one_convolution_again():
    network = decomposed(Stem)
    plan = choose_ranks(network, RankSettings(ratio=1.0))
    truncated = truncate(network, plan, TruncateSettings())
    assert not any(is_block(module) for module in truncated.module.modules())
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            truncated.module(images), network.module(images), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("factors", ["weights", "activations"])
def test_the_history_holds_the_costs_and_every_layer(factors):
    source = plain()
    network = scale(decompose(source, DecomposeSettings()), ScaleSettings(tau=0.9))
    settings = RankSettings(ratio=2.0, factors=factors)
    plan = choose_ranks(network, settings, images=some_images())
    truncated = truncate(network, plan, TruncateSettings())
    record = truncated.history[-1]
    assert [entry.stage for entry in truncated.history] == ["decompose", "scale", "truncate"]
    assert record.params == count_params(truncated.module) < count_params(source.module)
    assert record.macs == count_macs(truncated.module, (3, 16, 16))
    assert record.notes["macs_before"] == count_macs(source.module, (3, 16, 16))
    assert record.notes["ratio_met"] == pytest.approx(
        record.notes["macs_before"] / record.macs, abs=1e-3
    )
    layers = {layer["layer"]: layer for layer in record.notes["layers"]}
    assert list(layers) == ["stem", "down", "point", "late", "head"]
    assert "linear" in layers["head"]["reason"]
    for name, layer in layers.items():
        assert (layer["ranks"] is not None) == is_block(truncated.module.get_submodule(name))
        assert layer["fitted"] == (layer["ranks"] is not None and factors == "activations")


def test_fits_to_activations_change_the_outputs_less_than_fits_to_weights():
    network, images = decomposed(), some_images(32)
    pixels = (images.pixels - 0.5) / 0.25
    errors = {}
    for factors in ("weights", "activations"):
        plan = choose_ranks(network, RankSettings(ratio=3.0, factors=factors), images=images)
        truncated = truncate(network, plan, TruncateSettings())
        with torch.no_grad():
            gap = truncated.module(pixels) - network.module(pixels)
        errors[factors] = float(gap.square().sum())
    assert errors["activations"] < 0.7 * errors["weights"]


def test_the_source_is_left_alone():
    network = decomposed()
    before = {key: tensor.clone() for key, tensor in network.module.state_dict().items()}
    truncate(network, choose_ranks(network, RankSettings(ratio=2.0)), TruncateSettings())
    for key, tensor in network.module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_a_plan_for_another_network_is_refused():
    plan = choose_ranks(plain(), RankSettings(ratio=2.0, forms=("tucker",)))
    with pytest.raises(UsageError, match=r"the rank plan's layer .* is no layer"):
        truncate(decomposed(Stem), plan, TruncateSettings())
    network = decomposed()
    wrong = dataclasses.replace(plan, params_before=plan.params_before + 1)
    with pytest.raises(UsageError, match="the plan was made for another network"):
        truncate(network, wrong, TruncateSettings())
    too_wide = tuple(
        dataclasses.replace(layer, ranks=(99, 1)) if layer.ranks else layer for layer in plan.layers
    )
    with pytest.raises(UsageError, match=r"ranks \(99, 1\) do not fit"):
        truncate(network, dataclasses.replace(plan, layers=too_wide), TruncateSettings())


def test_a_plan_that_misses_its_ratio_is_refused_with_the_met_one():
    plan = choose_ranks(plain(), RankSettings(ratio=2.0))
    greedy = dataclasses.replace(plan, ratio_asked=2.2)
    with pytest.raises(RatioError, match=r"2\.0\d\d times smaller in macs, not 2\.2"):
        truncate(decomposed(), greedy, TruncateSettings())
    assert truncate(decomposed(), greedy, TruncateSettings(shortfall=0.1))
    with pytest.raises(UsageError, match=r"shortfall is 1\.0; .* at least 0 and below 1"):
        TruncateSettings(shortfall=1.0)
