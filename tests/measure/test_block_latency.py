"""A latency table is measured."""

import gc
import math
import time
import weakref
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from factor_networks import plain
from onnx import numpy_helper
from torch import nn

from edgeclean.compression.factorisation import part_shapes
from edgeclean.compression.latency_table import parse_latency_table
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.errors import UsageError
from edgeclean.measure import block_backends, block_latency
from edgeclean.measure.block_backends import OnnxBackend, chain_model, chain_module, open_backend
from edgeclean.measure.block_latency import BlockLatencySettings, measure_table
from edgeclean.measure.cuda_latency import Replay
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.networks.shapes import conv_shape
from exporters.onnx_exporter import ExportSettings, export_onnx


def test_a_form_in_onnx_computes_what_it_does_in_pytorch():
    shape = conv_shape(nn.Conv2d(8, 16, 3, padding=1, stride=2), (9, 9))
    made = part_shapes(shape, (4, 4))
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


def test_a_replay_holds_what_its_graph_reads():
    """A CUDA graph holds neither weights nor images, and runs on where they were."""

    runs = []
    module, images = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    read = [weakref.ref(module), weakref.ref(images)]
    replay = Replay(lambda: runs.append(1), module, images)
    del module, images
    gc.collect()
    assert all(one() is not None for one in read)
    replay()
    assert runs == [1]


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
    shapes = conv_shapes(trace_layers(network.module, (3, 16, 16)))
    assert set(tables[0].blocks) == set(shapes.values())
    assert tables[0].times(shapes["down"]).at((5, 7))[1] == "measured"
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
    assert block_backends.milliseconds(lambda: time.sleep(0.2), threads=1) < 100
    assert block_backends.milliseconds(lambda: busy(0.05), threads=1) == pytest.approx(50, rel=0.2)


@pytest.mark.parametrize(("interrupted", "runs", "ms"), [(0, 1, 9), (3, 4, 6), (99, 8, 2)])
def test_a_run_that_was_interrupted_is_made_again(monkeypatch, interrupted, runs, ms):
    """Runs take 9, 8, 7, ... ms; where every one is interrupted, the shortest of eight counts."""
    made, clock_ns, switches = [0], [0], [0]

    def run():
        made[0] += 1
        clock_ns[0] += (10 - made[0]) * 1_000_000
        switches[0] += made[0] <= interrupted

    monkeypatch.setattr(block_backends.time, "perf_counter_ns", lambda: clock_ns[0])
    monkeypatch.setattr(block_backends, "_interruptions", lambda: switches[0])
    assert block_backends.milliseconds(run, threads=2) == ms
    assert made == [runs]


def test_a_larger_layer_takes_longer():
    backend = open_backend("cpu", threads=1, batch=1)
    assert isinstance(backend, OnnxBackend)
    small, large = ((conv_shape(nn.Conv2d(c, c, 3, padding=1), (28, 28)),) for c in (16, 128))
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


def test_fewer_channels_are_timed_beside_the_whole_layer():
    network = plain()
    whole = conv_shapes(trace_layers(network.module, network.spec.input_shape))["down"]
    smaller = [replace(whole, channels_out=out, channels_in=8) for out in (16, 32)]
    table = measure_table(
        *(network, {"down": ()}),
        model=export_onnx(network, ExportSettings()),
        settings=BlockLatencySettings(rounds=5),
        cuts={whole: smaller},
    )
    assert set(table.blocks) == {whole, *smaller}
    assert all(len(table.blocks[one]) == 1 for one in smaller)
    times = table.cut_times(whole)
    assert times is not None
    assert times.at((16, 8))[1] == "measured"
    assert times.at((24, 8)) == (times.ns[32, 8], "estimated")
    assert times.at((40, 8)) == (times.ns[whole.channels], "estimated")
    assert parse_latency_table(table.canonical(), where="table").blocks == table.blocks
