"""A latency table is measured."""

import gc
import json
import math
import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from factor_networks import plain
from onnx import numpy_helper
from runtime_installed import installed_runtime
from torch import nn

from edgeclean.compression.factorisation import part_shapes
from edgeclean.compression.latency_table import parse_latency_table
from edgeclean.compression.plan import RankSettings, choose_ranks
from edgeclean.config import settings_from
from edgeclean.errors import ToolchainError, UsageError
from edgeclean.measure import block_backends, block_latency, block_runtimes, block_turns
from edgeclean.measure.block_backends import OnnxBackend, chain_model, chain_module, open_backend
from edgeclean.measure.block_latency import BlockLatencySettings, measure_table
from edgeclean.measure.block_runtimes import ConfinedBackend
from edgeclean.measure.cuda_latency import Replay
from edgeclean.measure.machine_table import is_of_runtime, is_of_this_machine
from edgeclean.networks.layers import conv_shapes, trace_layers
from edgeclean.networks.shapes import conv_shape
from exporters.confined import Parcel
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


def test_a_network_quicker_than_what_its_layers_save_is_measured_once_more():
    network = plain()
    model = export_onnx(network, ExportSettings())
    layers = {"stem": (), "down": (), "point": (), "late": ()}
    kept = Counted()

    def measured():
        return measure_table(network, layers, model=model, settings=QUICK, kept=kept)

    measured()
    (whole,) = (key for key, row in kept.rows.items() if len(json.loads(row)) == 1)
    down = max(kept.rows, key=lambda key: len(json.loads(kept.rows[key])))
    assert measured().network.ms == json.loads(kept.rows[whole])[0][0]
    slow = json.loads(kept.rows[down])
    slow[0][0] = 1e6  # as if the machine had had other work then
    kept.rows[down] = json.dumps(slow).encode()
    again = measured()
    assert max(row[0].ms for row in again.blocks.values()) < 1e6
    assert json.loads(kept.rows[down])[0][0] < 1e6  # and nobody meets it a second time


def test_what_fewer_channels_save_counts_too():
    network, kept = plain(), Counted()
    down = conv_shapes(trace_layers(network.module, network.spec.input_shape))["down"]
    fewer = replace(down, channels_out=16, channels_in=8)

    def measured():
        return measure_table(
            *(network, {"down": ()}),
            model=export_onnx(network, ExportSettings()),
            settings=QUICK,
            cuts={down: [fewer]},
            kept=kept,
        )

    blocks = measured().blocks
    dense, least = blocks[down][0].ms, min(one.ms for one in (*blocks[down], blocks[fewer][0]))
    lengths = {len(json.loads(row)): key for key, row in kept.rows.items()}
    quick = dense - least / 2  # more than any form saves, and less than no channels would
    kept.rows[lengths[1]] = json.dumps([[quick, 0.0]]).encode()
    assert measured().network.ms == quick
    kept.rows[lengths[2]] = json.dumps([[dense, 0.0], [0.0, 0.0]]).encode()
    again = measured()
    assert again.network.ms != quick
    assert again.blocks[fewer][0].ms > 0


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

    seen = SimpleNamespace(
        RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_nivcsw=switches[0])
    )
    monkeypatch.setattr(block_turns, "resource", seen)
    monkeypatch.setattr(block_turns.time, "perf_counter_ns", lambda: clock_ns[0])
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


@pytest.mark.parametrize("name", ["openvino", "ncnn", "mnn"])
def test_a_table_is_measured_in_another_runtime(name):
    exporter = installed_runtime(name)
    network, kept = plain(), Counted()
    model = export_onnx(network, ExportSettings())
    settings = replace(QUICK, runtime=name)
    told = {"model": model, "settings": settings, "kept": kept}
    table, again = (measure_table(network, {"point": ()}, **told) for _ in range(2))
    assert table == again == parse_latency_table(table.canonical(), where="table")
    assert table.runtime == f"{exporter.title}, CPU"
    assert not is_of_this_machine(table)  # of this processor, and of another runtime
    assert is_of_runtime(table, name, exporter.version())
    assert not is_of_runtime(table, name, exporter.version()[:-1])
    assert not is_of_runtime(replace(table, device="another"), name, exporter.version())
    (forms,) = table.blocks.values()
    assert len(forms) > 1
    assert all(one.ms > 0 for one in forms)
    assert table.network.ms > 0
    other = measure_table(network, {"point": ()}, model=model, settings=QUICK, kept=kept)
    assert other.runtime.startswith("onnxruntime")
    assert len(kept.rows) == 4  # none was taken for the other runtime's


def test_in_another_runtime_too_a_larger_layer_takes_longer():
    installed_runtime("mnn")
    backend = ConfinedBackend("mnn", threads=1, batch=1)
    small, large = ((conv_shape(nn.Conv2d(c, c, 3, padding=1), (28, 28)),) for c in (16, 128))
    models = [chain_model(chain, 1, pooled=True) for chain in (small, large)]
    times = backend.rounds(models, 9, 5.0)
    assert times.shape == (9, 2)
    assert np.median(times[:, 1]) > 5 * np.median(times[:, 0])


def test_rounds_end_with_their_time_and_not_before_five():
    runs = [lambda: time.sleep(0.001) or 1.0]
    assert len(block_turns.take_rounds(runs, 100, 0.0)) == 5
    assert len(block_turns.take_rounds(runs, 7, 60.0)) == 7


def test_a_runtimes_own_threads_are_timed(monkeypatch):
    """What a thread of its own computes counts; a run that was interrupted is made again."""

    def run():
        thread = threading.Thread(target=busy, args=(0.05,))
        thread.start()
        thread.join()

    assert block_turns.undisturbed_milliseconds(run) > 45
    counts = iter([0, 1, 1, 1])  # before and after each run
    seen = SimpleNamespace(
        RUSAGE_SELF=0, getrusage=lambda _: SimpleNamespace(ru_nivcsw=next(counts))
    )
    made = []
    monkeypatch.setattr(block_turns, "resource", seen)
    block_turns.undisturbed_milliseconds(lambda: made.append(1))
    assert made == [1, 1]
    assert next(counts, None) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runtime": "tensorrt"}, "one of onnxruntime, openvino, ncnn, mnn"),
        ({"runtime": "tvm"}, "one of onnxruntime"),
        ({"runtime": "mnn", "backend": "torch-cuda"}, "mnn computes on the processor, and the ba"),
    ],
)
def test_runtimes_that_cannot_be_timed_here_are_refused(changes, words):
    with pytest.raises(UsageError, match=words):
        settings_from(BlockLatencySettings, changes)


def test_a_runtime_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("exporters.confined_runtime.installed_version", lambda _package: None)
    with pytest.raises(ToolchainError, match="the runtime mnn was asked, and mnn is not installed"):
        measure_table(plain(), {}, model=b"", settings=replace(QUICK, runtime="mnn"))


def test_what_a_runtime_answers_is_not_believed(monkeypatch):
    installed_runtime("mnn")
    for answer in ({}, {"latencies_ms": b"x"}, {"latencies_ms": np.full(2, np.nan).tobytes()}):
        parcel = Parcel(files=answer)
        monkeypatch.setattr(block_runtimes, "run_confined", lambda *_, given=parcel: given)
        backend = ConfinedBackend("mnn", threads=1, batch=1)
        shape = conv_shape(nn.Conv2d(4, 4, 1), (4, 4))
        model = chain_model((shape,), 1, pooled=True)
        with pytest.raises(ToolchainError, match="timing layers answered nonsense"):
            backend.rounds([model, model], 9, 1.0)
