"""Defences that compress: channel pruning after one, Clean & Compact, edgeclean's default."""

from __future__ import annotations

import copy

import pytest
import torch
from bench_few import FEW
from bench_images import shade_images, tiny_network

from benchmarks.defences import table
from benchmarks.defences.channel_pruning import PruningSettings, prune_channels, pruned_after
from benchmarks.defences.clean_compact import clean_compact
from benchmarks.defences.edgeclean_default import edgeclean_default, edgeclean_purified
from benchmarks.defences.table import every_defence
from benchmarks.suite.suites import CIFAR10, image_spec
from edgeclean.errors import RatioError, UsageError
from edgeclean.load.architectures import build_architecture
from edgeclean.networks.cost import count_macs
from edgeclean.networks.state import LoadedNetwork, Network
from edgeclean.pipeline import run_stages

CLEAN = shade_images(8)


def macs(network: Network) -> int:
    return count_macs(network.module, network.spec.input_shape)


def same(first: Network, second: Network) -> bool:
    one, other = first.module.state_dict(), second.module.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_pruning_takes_the_channels_that_a_defence_zeroed_first():
    network = tiny_network()
    zeroed = copy.deepcopy(network.module)
    with torch.no_grad():
        for channel in (1, 4, 6):
            zeroed[1].weight[channel] = zeroed[1].bias[channel] = 0
        zeroed[1].weight[[0, 2, 3, 5, 7]] = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9])
    like = Network(module=zeroed, spec=network.spec, source_sha256="0" * 64)
    pruned = prune_channels(like, PruningSettings(ratio=2.0))
    kept = pruned.module[1].weight.tolist()
    assert 0 < len(kept) <= 5
    left = [0.5, 0.6, 0.7, 0.8, 0.9][-len(kept) :]
    assert kept == pytest.approx(left)  # in place, without the zeros
    assert macs(pruned) <= macs(network) / 2
    assert pruned.module[-1].out_features == 4


@pytest.mark.parametrize("name", ["benchmarks.networks.small_resnet:resnet8", "cifar-resnet18"])
@pytest.mark.parametrize("ratio", [2.0, 4.0])
def test_residual_networks_still_run_at_their_ratio(name, ratio):
    spec = image_spec(name, **CIFAR10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_architecture(name, spec, ()).eval()
    network = LoadedNetwork(module=module, spec=spec, source_sha256="0" * 64)
    pruned = prune_channels(network, PruningSettings(ratio=ratio))
    assert 0.75 * macs(network) / ratio < macs(pruned) <= macs(network) / ratio
    with torch.no_grad():
        assert pruned.module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pruning_out_of_reach_is_refused():
    with pytest.raises(RatioError, match="ratio 500 is out of reach"):
        prune_channels(tiny_network(), PruningSettings(ratio=500))
    with pytest.raises(UsageError, match="it must be at least 1"):
        PruningSettings(ratio=0.5)


def test_a_defence_runs_before_its_pruning():
    seen = []

    def mark(network, clean, seed):
        seen.append((len(clean), seed))
        return network

    outcome = pruned_after(mark, PruningSettings(ratio=2.0))(tiny_network(), CLEAN, 5)
    assert seen == [(8, 5)]
    assert outcome.history[-1].stage == "channel-pruning"


def test_the_ratios_of_a_column_prune_what_one_anp_left(monkeypatch):
    seen = []

    def counted(network, clean, seed, settings):
        seen.append((network, seed))
        return network

    monkeypatch.setattr(table, "anp", counted)
    defence, network = every_defence(FEW), tiny_network()
    for ratio in (2, 3, 4):
        outcome = defence[f"anp+pruning-{ratio}x"].defend(network, CLEAN, 0)
        assert macs(outcome) <= macs(network) / ratio
    assert seen == [(network, 0)]
    another = tiny_network()
    defence["anp+pruning-2x"].defend(another, CLEAN, 0)
    defence["anp+pruning-2x"].defend(another, CLEAN, 1)
    assert seen == [(network, 0), (another, 0), (another, 1)]


def test_clean_compact_clamps_before_it_truncates_and_tunes_on_attacked_images():
    outcome = clean_compact(tiny_network(), settings=FEW.clean_compact)
    records = {record.stage: record for record in outcome.history}
    assert list(records) == ["decompose", "scale", "truncate", "finetune"]
    assert records["scale"].settings["tau"] == 0.5
    assert records["finetune"].settings["adversarial_share"] == 0.5
    assert macs(outcome) <= macs(tiny_network()) / 2
    assert same(outcome, clean_compact(tiny_network(), settings=FEW.clean_compact))


def test_edgeclean_in_the_tables_is_what_the_pipeline_makes():
    network, settings = tiny_network(), FEW.edgeclean
    loaded = LoadedNetwork(module=network.module, spec=network.spec, source_sha256="0" * 64)
    made = run_stages(loaded, settings)
    assert same(edgeclean_default(loaded, CLEAN, settings.seed, settings), made.compressed)
    assert same(edgeclean_purified(loaded, CLEAN, settings.seed, settings), made.purified)


def test_a_ratio_in_a_name_is_the_ratio_that_is_met():
    defence = every_defence(FEW)
    for name in ("deck-2x", "edgeclean-2x", "clp+pruning-2x"):
        outcome = defence[name].defend(tiny_network(), CLEAN, 0)
        assert macs(outcome) <= macs(tiny_network()) / 2, name
    assert defence["edgeclean-3x"].settings[0].ranks.ratio == 3.0


def test_a_later_session_takes_up_what_purifying_left(tmp_path):
    def kept():
        return {path.name: path.stat().st_ino for path in tmp_path.glob("*.kept")}

    network = tiny_network()
    first = every_defence(FEW, tmp_path)["edgeclean-full-size"].defend(network, CLEAN, 0)
    purifying = kept()
    assert len(purifying) == 3  # images, the scan, the purified network
    later = every_defence(FEW, tmp_path)
    assert same(later["edgeclean-full-size"].defend(network, CLEAN, 0), first)
    assert kept() == purifying
    smaller = later["edgeclean-2x"].defend(network, CLEAN, 0)
    assert purifying.items() <= kept().items()
    assert same(smaller, every_defence(FEW)["edgeclean-2x"].defend(network, CLEAN, 0))
