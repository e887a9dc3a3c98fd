"""What only a CUDA device shows: every stage works where the network lies, and agrees with the CPU.

``make test-gpu`` runs them.
"""

from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_checkpoint import QUICK, quick_settings, spec, write_checkpoint
from tiny_networks import tiny_network
from torch import nn

from edgeclean.bundle.verify import verify_bundle
from edgeclean.compression.clamp import ScaleSettings, choose_tau
from edgeclean.compression.decompose import DecomposeSettings, decompose
from edgeclean.compression.finetune import finetune
from edgeclean.config import settings_for
from edgeclean.devices.targets import load_target
from edgeclean.images.synthesize import synthesize
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.measure.block_latency import BlockLatencySettings, measure_table
from edgeclean.measure.cuda_latency import captured, measure_pair_on_cuda
from edgeclean.measure.latency import LatencySettings
from edgeclean.networks.autocast import device_of
from edgeclean.networks.folding import NormedConv, folding_norms
from edgeclean.networks.pixels import pixel_copy
from edgeclean.networks.state import LoadedNetwork
from edgeclean.pipeline import compress, run_stages
from edgeclean.runner import Cache
from exporters.onnx_exporter import export_onnx

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
DEVICE = torch.device("cuda")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


def on_cuda(checkpoint: Path) -> LoadedNetwork:
    network = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    network.module.to(DEVICE)
    return network


@pytest.mark.parametrize("mode", ["guided", "clean-compact", "none"])
def test_every_stage_runs_where_the_network_lies(checkpoint: Path, mode: str) -> None:
    asked = QUICK | {"purify": QUICK["purify"] | {"mode": mode}}
    outcome = run_stages(on_cuda(checkpoint), settings_for(load_target("cpu"), asked))
    assert device_of(outcome.purified.module).type == "cuda"
    assert device_of(outcome.compressed.module).type == "cuda"
    assert outcome.parity.max_relative_difference < 1e-4
    assert outcome.images.pixels.device.type == "cpu"


def test_a_bundle_made_on_the_gpu_verifies(checkpoint: Path, tmp_path: Path) -> None:
    asked = settings_for(load_target("cpu"), QUICK | {"compute": "cuda"})
    written = compress(checkpoint, spec(), tmp_path / "b", asked, code_folder=checkpoint.parent)
    assert device_of(written.compression.compressed.module).type == "cuda"
    verify_bundle(written.bundle.path)
    assert written.report["environment"]["gpu"] == torch.cuda.get_device_name()


def test_a_second_run_takes_up_what_the_first_kept_on_the_gpu(
    checkpoint: Path, tmp_path: Path
) -> None:
    asked = settings_for(load_target("cpu"), QUICK | {"compute": "cuda"})
    told: list[str] = []
    cache = Cache(folder=tmp_path / "cache", notify=told.append)
    first, second = (
        compress(
            checkpoint, spec(), tmp_path / name, asked, code_folder=checkpoint.parent, cache=cache
        )
        for name in ("first", "second")
    )
    assert second.compression.model == first.compression.model
    assert device_of(second.compression.compressed.module).type == "cuda"
    taken = {line.partition(":")[0] for line in told}
    assert taken == {"synthesize", "scan", "purify", "ranks", "finetune"}


def test_a_network_says_the_same_as_on_the_cpu() -> None:
    network = tiny_network(size=16, channels=32)
    pixels = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    here = pixel_copy(network)
    there = copy.deepcopy(here).to(DEVICE)
    with folding_norms(there, pixels), torch.no_grad():
        # TF32 must not make an exact folding look like a change of the network.
        assert sum(isinstance(layer, NormedConv) for layer in there.modules()) == 3
        given = there(pixels.to(DEVICE)).cpu()
    with torch.no_grad():
        expected = here(pixels)
    assert (given - expected).abs().max() < 5e-3 * expected.abs().max()


def test_tau_is_chosen_there_as_here(checkpoint: Path) -> None:
    network = on_cuda(checkpoint)
    pixels = torch.rand(32, *spec().input_shape, generator=torch.Generator().manual_seed(0))
    there = choose_tau(decompose(network, DecomposeSettings()), pixels, ScaleSettings())
    network.module.cpu()
    here = choose_tau(decompose(network, DecomposeSettings()), pixels, ScaleSettings())
    assert there.tau is not None
    assert here.tau is not None
    assert abs(there.tau - here.tau) <= 0.05 + 1e-9  # an image on the border may fall either way


def test_statistics_are_estimated_again_there(checkpoint: Path) -> None:
    network, settings = on_cuda(checkpoint), quick_settings()
    images = synthesize(network, settings.synthesize, seed=0)
    asked = replace(settings.finetune, reestimate=True, steps=1)
    tuned = finetune(network, network, images, asked, seed=0)
    assert device_of(tuned.module).type == "cuda"


def test_a_pair_is_measured_run_by_run(checkpoint: Path) -> None:
    model = export_onnx(on_cuda(checkpoint))
    report = measure_pair_on_cuda(model, model, LatencySettings(runs=50))
    for sample in (report.original, report.compressed):
        assert len(sample.latencies_ms) == sample.runs == 50
        assert min(sample.latencies_ms) > 0
    assert report.speedup == report.original.p50_ms / report.compressed.p50_ms
    assert report.provider == torch.cuda.get_device_name()


def test_what_a_graph_reads_lives_as_long_as_it_is_replayed() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).cuda().eval()
    images = torch.rand(2, 3, 8, 8, device=DEVICE)
    read = [weakref.ref(module), weakref.ref(images)]
    replay = captured(module, images)
    del module, images
    gc.collect()
    assert all(one() is not None for one in read)
    replay()
    torch.cuda.synchronize()
    del replay
    gc.collect()
    assert all(one() is None for one in read)


def test_a_latency_table_of_the_device(checkpoint: Path) -> None:
    network = on_cuda(checkpoint)
    settings = BlockLatencySettings(backend="torch-cuda", rounds=5)
    model = export_onnx(network)
    table = measure_table(network, {"3": ((8, 8),)}, model=model, settings=settings)
    assert table.device == torch.cuda.get_device_name()
    (forms,) = table.blocks.values()
    assert all(form.ms > 0 for form in forms)
