"""The whole run on a small checkpoint: its bundle, its stages in order, the same bytes again."""

from __future__ import annotations

import functools
import json
import os
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from report_evidence import scan_report
from small_checkpoint import QUICK, quick_settings, spec, write_checkpoint

from edgeclean import pipeline, shrinking
from edgeclean.backdoor.purify import purify
from edgeclean.backdoor.triggers import MaskedTrigger
from edgeclean.bundle.verify import verify_bundle
from edgeclean.config import PipelineSettings, overlay, settings_for, settings_from
from edgeclean.devices.targets import load_target
from edgeclean.images.synthesize import synthesize
from edgeclean.load.checkpoint import load_checkpoint
from edgeclean.measure.runtimes import Runtimes
from edgeclean.networks.cost import count_macs, count_params
from edgeclean.networks.state import same_weights
from edgeclean.pipeline import (
    WrittenCompression,
    compress,
    export_checkpoint,
    inspect_checkpoint,
    scan_checkpoint,
)
from edgeclean.report.report import check_report, command_line
from edgeclean.runner import Runner
from exporters.onnx_check import open_onnx, opset_of
from exporters.session import OnnxSession

STAGES = (
    "load",
    "forecast",  # its held-out images, before anything is changed
    "synthesize",
    "scan",
    "purify",
    "decompose",
    "scale",
    "ranks",
    "truncate",
    "finetune",
    "export",
    "parity",
    "precision",
    "latency",
    "runtimes",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def took() -> list[float]:
    """Seconds of the whole run."""
    return []


@pytest.fixture(scope="module")
def written(
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    told: list[tuple[str, int, int]],
    took: list[float],
) -> WrittenCompression:
    start = time.perf_counter()
    made = compress(
        checkpoint,
        spec(),
        tmp_path_factory.mktemp("out") / "bundle",
        quick_settings(),
        code_folder=checkpoint.parent,
        progress=lambda *step: told.append(step),
    )
    took.append(time.perf_counter() - start)
    return made


def test_a_bundle_comes_out_that_verifies(written: WrittenCompression) -> None:
    record = verify_bundle(written.bundle.path)
    assert record.manifest_sha256 == written.bundle.manifest_sha256
    assert {"model.onnx", "manifest.json", "report.json", "report.html"} <= set(record.files)
    report = json.loads((written.bundle.path / "report.json").read_text("utf-8"))
    check_report(report)
    assert report == written.report
    assert report["environment"]["gpu"] is None
    assert (written.bundle.path / "model.onnx").read_bytes() == written.compression.model


def test_grey_images_that_are_not_square_go_all_the_way(tmp_path: Path) -> None:
    shape = (1, 9, 14)
    grey = replace(spec(), input_shape=shape, mean=(0.5,), std=(0.25,))
    checkpoint = write_checkpoint(tmp_path, channels=1)
    made = compress(
        checkpoint, grey, tmp_path / "bundle", quick_settings(), code_folder=checkpoint.parent
    )
    assert verify_bundle(made.bundle.path).manifest_sha256 == made.bundle.manifest_sha256
    assert made.compression.images.pixels.shape[1:] == shape
    (declared,) = open_onnx(made.compression.model).graph.input
    assert tuple(side.dim_value for side in declared.type.tensor_type.shape.dim[1:]) == shape


SIGNALS = """
from torch import nn

def make(classes=4):
    return nn.Sequential(
        nn.Conv2d(3, 16, (1, 7), (1, 2), (0, 3)), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, (1, 7), (1, 2), (0, 3)), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, classes),
    )
"""


def test_signals_of_one_row_go_all_the_way(tmp_path: Path) -> None:
    """As images of 3x1xN; once more with a suspect, so that the rounds of unlearning run."""
    (tmp_path / "net.py").write_text(SIGNALS, encoding="utf-8")
    names: dict[str, Any] = {}
    exec(SIGNALS, names)  # noqa: S102 - the code above
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(names["make"]().state_dict(), tmp_path / "net.pth")
    signals = replace(spec(), input_shape=(3, 1, 64))
    settings = quick_settings(ranks=QUICK["ranks"] | {"ratio": 1.2})
    made = compress(
        tmp_path / "net.pth", signals, tmp_path / "bundle", settings, code_folder=tmp_path
    )
    verify_bundle(made.bundle.path)
    outcome = made.compression
    assert outcome.images.pixels.isfinite().all()
    assert not same_weights(outcome.original.module, outcome.purified.module)
    for network in (outcome.purified, outcome.compressed):
        assert all(value.isfinite().all() for value in network.module.state_dict().values())
    assert {"masked patch", "warp"} <= {record.name for record in outcome.scan.searches}
    suspect = replace(scan_report(side=64).suspects[0], trigger=_row_trigger(64))
    found = replace(outcome.scan, verdict="suspected", suspects=(suspect,))
    purified = purify(outcome.original, outcome.images, found, settings.purify, seed=0)
    assert all(value.isfinite().all() for value in purified.module.state_dict().values())


def _row_trigger(width: int) -> MaskedTrigger:
    mask = torch.zeros(1, 1, width)
    mask[..., -3:] = 1
    return MaskedTrigger(mask, torch.ones(3, 1, width))


FLATTENING = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 24, 3, 2)
        self.fc = nn.Linear(24 * 4 * 4, classes)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        return self.fc(x.view(x.size(0), -1))

def make(classes=4):
    return Net(classes)
"""


def test_a_network_that_flattens_by_a_view_goes_all_the_way(tmp_path: Path) -> None:
    """Its code was written for images in another order of memory than is computed in."""
    (tmp_path / "net.py").write_text(FLATTENING, encoding="utf-8")
    names: dict[str, Any] = {}
    exec(FLATTENING, names)  # noqa: S102 - the code above
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = names["make"]().eval()
    torch.save(plain.state_dict(), tmp_path / "net.pth")
    loaded = load_checkpoint(tmp_path / "net.pth", spec(), code_folder=tmp_path)
    assert list(loaded.module.state_dict()) == list(plain.state_dict())
    images = torch.rand(3, *spec().input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), plain(images))
        last = images.to(memory_format=torch.channels_last)
        torch.testing.assert_close(loaded.module(last), plain(images))
    with pytest.raises(RuntimeError, match="size"):
        loaded.module.get_parameter("fc.weight").view(7)  # outside, a view is a view
    settings = quick_settings(ranks=QUICK["ranks"] | {"ratio": 1.2})
    made = compress(
        tmp_path / "net.pth", spec(), tmp_path / "bundle", settings, code_folder=tmp_path
    )
    verify_bundle(made.bundle.path)


def test_the_ratio_is_met(written: WrittenCompression) -> None:
    outcome = written.compression
    before = count_macs(outcome.original.module, spec().input_shape)
    after = count_macs(outcome.compressed.module, spec().input_shape)
    assert before / after >= 2
    assert written.report["size"]["macs"] == {"original": before, "compressed": after}
    assert outcome.parity.max_relative_difference <= 1e-4


def test_the_original_is_not_changed(checkpoint: Path, written: WrittenCompression) -> None:
    fresh = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    assert same_weights(fresh.module, written.compression.original.module)
    assert not same_weights(fresh.module, written.compression.purified.module)


def test_every_stage_is_timed_told_and_in_order(
    written: WrittenCompression, told: list[tuple[str, int, int]], took: list[float]
) -> None:
    stages = [stage["stage"] for stage in written.report["stages"]]
    assert stages == list(STAGES)
    seconds = {stage["stage"]: stage["seconds"] for stage in written.report["stages"]}
    assert all(seconds[stage] > 0 for stage in ("load", "synthesize", "scan", "purify", "finetune"))
    assert sum(seconds.values()) <= took[0]  # each stage's own, and none counted twice
    sizes = {stage["stage"]: (stage["params"], stage["macs"]) for stage in written.report["stages"]}
    shape = spec().input_shape
    for stage, network in (
        ("purify", written.compression.purified),
        ("scale", written.compression.scaled),
        ("finetune", written.compression.compressed),
    ):
        module = network.module
        assert sizes[stage] == (count_params(module), count_macs(module, shape)), stage
    last = {description.partition(":")[0]: (done, total) for description, done, total in told}
    assert {"Loading", "Synthesising images", "Exporting", "Measuring latency"} <= set(last)
    assert all(done == total for done, total in last.values())


def test_two_runs_from_two_folders_give_the_same_bytes(
    written: WrittenCompression, tmp_path: Path
) -> None:
    elsewhere = write_checkpoint(tmp_path / "quite-another" / "place")
    again = compress(
        elsewhere, spec(), tmp_path / "b", quick_settings(), code_folder=elsewhere.parent
    )
    for name in ("model.onnx", "manifest.json", "golden.safetensors"):
        one, other = (bundle.path / name for bundle in (written.bundle, again.bundle))
        assert one.read_bytes() == other.read_bytes(), name
    everything = b"".join(path.read_bytes() for path in again.bundle.path.iterdir())
    assert str(tmp_path).encode() not in everything
    assert b"quite-another" not in everything


def test_another_seed_gives_another_network(written: WrittenCompression, checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    outcome = pipeline.run_stages(loaded, quick_settings(seed=1))
    assert outcome.model != written.compression.model


def test_without_purification_images_are_made_once_and_of_the_original(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    told: list[str] = []
    outcome = pipeline.run_stages(
        loaded,
        quick_settings(purify={"mode": "none"}),
        runner=Runner(
            progress=lambda description, done, _: told.append(description) if done == 0 else None
        ),
    )
    assert same_weights(outcome.original.module, outcome.purified.module)
    assert told.count("Synthesising images") == 1


def test_the_compressed_network_is_taught_on_images_of_the_purified_one(
    written: WrittenCompression,
) -> None:
    outcome, settings = written.compression, quick_settings()
    fresh = synthesize(outcome.purified, settings.synthesize.recovery(), seed=settings.seed + 1)
    first = synthesize(outcome.original, settings.synthesize, seed=settings.seed)
    expected = torch.cat([first.pixels, fresh.pixels])
    assert torch.equal(outcome.images.pixels, expected)


def test_the_purified_network_teaches_and_not_the_one_that_came(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, real = [], shrinking.finetune

    @functools.wraps(real)
    def watched(network: Any, teacher: Any, *rest: Any, **named: Any) -> Any:
        taught.append(teacher)
        return real(network, teacher, *rest, **named)

    monkeypatch.setattr(shrinking, "finetune", watched)
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    outcome = pipeline.run_stages(loaded, quick_settings())
    assert not same_weights(outcome.original.module, outcome.purified.module)
    assert [same_weights(one.module, outcome.purified.module) for one in taught] == [True]


def test_clean_compact_clamps_truncates_and_tunes_on_its_own_images(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    settings = settings_for(
        load_target("cpu"), overlay(QUICK, {"purify": {"mode": "clean-compact"}})
    )
    assert settings.finetune.compare == "labels"
    assert settings.ranks.factors == "weights"
    outcome = pipeline.run_stages(loaded, settings)
    assert same_weights(outcome.original.module, outcome.purified.module)
    clamp = outcome.scaled.history[-1]
    assert 0 < clamp.settings["tau"] <= 1  # chosen, as none was given
    first = synthesize(loaded, settings.synthesize, seed=settings.seed)
    assert not torch.equal(outcome.images.pixels, first.pixels)
    assert len(outcome.images) == settings.synthesize.count
    asked = overlay(QUICK, {"purify": {"mode": "clean-compact"}, "scale": {"tau": 0.4}})
    told = pipeline.run_stages(loaded, settings_for(load_target("cpu"), asked))
    assert told.scaled.history[-1].settings["tau"] == 0.4


def test_what_the_command_says_gives_the_same_settings(written: WrittenCompression) -> None:
    again = written.report["reproduce"]
    settings = settings_from(PipelineSettings, tomllib.loads(again["settings_toml"]))
    assert settings == quick_settings()
    threads = torch.get_num_threads()
    by_option = f" --threads {threads}" if threads == settings.latency.threads else ""
    by_variable = "" if by_option else f"OMP_NUM_THREADS={threads} "
    assert again["command"] == (
        f"{by_variable}edgeclean compress model.safetensors --arch net.py:make "
        "--input-shape 3x12x12 --classes 4 --mean=0.5,0.5,0.5 --std=0.25,0.25,0.25 "
        f"--config edgeclean.toml{by_option} -o build"
    )


@pytest.mark.parametrize("option", [None, 1, 3])
def test_the_command_computes_with_as_many_threads(option: int | None) -> None:
    """``--threads`` is also of the measurement, and the network's bytes hang on PyTorch's alone."""
    given = {} if option is None else {"latency": {"threads": option}}
    settings = settings_for(load_target("cpu"), overlay(QUICK, given))
    for threads in (1, 3):
        words = command_line(Path("a.pth"), spec(), settings, None, threads).split()
        said = next((one for one in words if one.startswith("OMP_NUM_THREADS=")), "")
        if "--threads" in words:
            assert words[words.index("--threads") + 1] == str(threads)
            assert settings.latency.threads == threads
        else:
            assert words[0] == said == f"OMP_NUM_THREADS={threads}"


def test_the_command_names_the_files_of_a_target_and_of_a_table() -> None:
    settings = replace(quick_settings(), target="camera-board")
    said = command_line(
        Path("a/model.onnx"), spec(), settings, "camera-board.toml", threads=1, table=True
    )
    assert said.endswith(
        "--config edgeclean.toml --threads 1 --target-file camera-board.toml --latency-table "
        "latency-table.json -o build"
    )
    assert "a/" not in said


def test_the_command_is_text_whatever_the_names_of_its_files() -> None:
    checkpoint = Path(os.fsdecode(b"n\xff\x1b.safetensors"))
    said = command_line(checkpoint, spec(), quick_settings(), None, 1)
    assert said.startswith(r"edgeclean compress 'n\udcff\x1b.safetensors' ")
    said.encode()


def test_a_scan_and_a_plan_stop_where_they_should(checkpoint: Path) -> None:
    folder = checkpoint.parent
    scanned = scan_checkpoint(checkpoint, spec(), quick_settings(), code_folder=folder)
    assert [record.stage for record in scanned.network.history] == ["load"]
    assert len(scanned.images) == 24
    assert len(scanned.report.searches) == len(quick_settings().scan.searches)
    inspected = inspect_checkpoint(checkpoint, spec(), quick_settings(), code_folder=folder)
    original, planned = inspected.network, inspected.planned
    shape = spec().input_shape
    assert count_macs(original.module, shape) >= 2 * count_macs(planned.module, shape)
    assert [row.name for row in inspected.layers] == ["0", "3", "6", "11"]
    assert {curve.name for curve in inspected.spectra} <= {row.name for row in inspected.layers}


def test_what_was_suspected_and_left_as_it_was_is_warned_of(written: WrittenCompression) -> None:
    outcome = replace(written.compression, scan=scan_report())
    assert not any("purification changed no weight" in one for one in outcome.caveats)
    same = replace(outcome.purified, module=outcome.original.module)
    (said,) = (one for one in replace(outcome, purified=same).caveats if "suspects" in one)
    assert "The scan suspects class 2, and purification changed no weight" in said
    quiet = replace(outcome, purified=same, scan=scan_report(suspected=False))
    assert not any("suspects" in one for one in quiet.caveats)


def test_times_that_say_little_are_in_the_report_as_well(written: WrittenCompression) -> None:
    measured = replace(written.compression.latency, speedup_high=1.1, steady=True)
    good = replace(written.compression, latency=measured, runtimes=Runtimes())
    row = {"name": "ncnn", "latency": {"speedup": 0.9}}
    poor = replace(
        good,
        latency=replace(measured, speedup_high=0.9, steady=False),
        runtimes=Runtimes(rows=({"name": "mnn", "latency": None}, row)),
    )
    assert poor.caveats == (
        *good.caveats,
        "The compressed network is slower than the original on this machine.",
        "This machine was not steady: its times say little.",
        "In ncnn the compressed network is slower than the original.",
    )
    assert set(written.compression.caveats) <= set(written.report["warnings"])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_export_is_the_network_as_it_came(checkpoint: Path, precision: str) -> None:
    settings = quick_settings(precision={"format": precision})
    exported = export_checkpoint(checkpoint, spec(), settings, code_folder=checkpoint.parent)
    assert [record.stage for record in exported.network.history] == ["load"]
    assert exported.lowered.format == precision
    assert exported.model == exported.lowered.model
    assert exported.parity.max_relative_difference <= settings.parity.tolerance
    pixels = torch.rand(5, *spec().input_shape, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (spec().mean, spec().std))
    with torch.no_grad():
        expected = exported.network.module((pixels - mean) / std)
    answers = OnnxSession(exported.model).predict(pixels.numpy())
    assert abs(answers - expected.numpy()).max() < 0.05


def test_the_exported_file_has_the_targets_opset(checkpoint: Path, tmp_path: Path) -> None:
    nano = load_target("jetson-nano")
    written = compress(
        checkpoint,
        spec(),
        tmp_path / "b",
        settings_for(nano, QUICK),
        target=nano,
        code_folder=checkpoint.parent,
    )
    assert opset_of(open_onnx(written.compression.model)) == 13
    assert written.bundle.manifest["target"]["name"] == "jetson-nano"
    assert written.report["target"]["name"] == "jetson-nano"


def test_the_global_generators_are_left_alone(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    pipeline.run_stages(loaded, quick_settings())
    assert torch.equal(torch.get_rng_state(), state)
