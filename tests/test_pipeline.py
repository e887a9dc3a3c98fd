from __future__ import annotations

import functools
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from report_evidence import scan_report
from small_checkpoint import QUICK, quick_settings, spec, write_checkpoint

from edgeclean import stages
from edgeclean.bundles.verify import verify_bundle
from edgeclean.config import (
    PipelineSettings,
    non_default,
    overlay,
    read_config,
    settings_for,
    settings_from,
    to_toml,
)
from edgeclean.cost import count_macs
from edgeclean.errors import (
    BackdoorSuspectedError,
    InputRejectedError,
    OutputInUseError,
    ParityError,
    RatioError,
    UsageError,
)
from edgeclean.gates.policy import Policy
from edgeclean.loading.checkpoint import load_checkpoint
from edgeclean.pipeline import WrittenOutcome, compress, plan_checkpoint, scan_checkpoint
from edgeclean.reports.report import check_report, same_weights
from edgeclean.reports.stopwatch import Stopwatch, peak_memory_mib
from edgeclean.runtime.onnx_check import open_onnx, opset_of
from edgeclean.synthesis.synthesize import synthesize
from edgeclean.targets.targets import load_target

STAGES = (
    "load",
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
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def written(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, told: list[tuple[str, int, int]]
) -> WrittenOutcome:
    return compress(
        checkpoint,
        spec(),
        tmp_path_factory.mktemp("out") / "bundle",
        quick_settings(),
        code_folder=checkpoint.parent,
        progress=lambda *step: told.append(step),
    )


def test_a_bundle_comes_out_that_verifies(written: WrittenOutcome) -> None:
    record = verify_bundle(written.bundle.path)
    assert record.manifest_sha256 == written.bundle.manifest_sha256
    assert {"model.onnx", "manifest.json", "report.json", "report.html"} <= set(record.files)
    report = json.loads((written.bundle.path / "report.json").read_text("utf-8"))
    check_report(report)
    assert report == written.report
    assert (written.bundle.path / "model.onnx").read_bytes() == written.outcome.model


def test_the_ratio_is_met(written: WrittenOutcome) -> None:
    outcome = written.outcome
    before = count_macs(outcome.original.module, spec().input_shape)
    after = count_macs(outcome.compressed.module, spec().input_shape)
    assert before / after >= 2
    assert written.report["size"]["macs"] == {"original": before, "compressed": after}
    assert outcome.parity.max_relative_difference <= 1e-4


def test_the_original_is_not_changed(checkpoint: Path, written: WrittenOutcome) -> None:
    fresh = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    assert same_weights(fresh.module, written.outcome.original.module)
    assert not same_weights(fresh.module, written.outcome.purified.module)


def test_every_stage_is_timed_told_and_in_order(
    written: WrittenOutcome, told: list[tuple[str, int, int]]
) -> None:
    stages = [stage["stage"] for stage in written.report["stages"]]
    assert stages == list(STAGES)
    assert all(stage["seconds"] >= 0 for stage in written.report["stages"])
    last = {description.partition(":")[0]: (done, total) for description, done, total in told}
    assert {"Loading", "Synthesising images", "Exporting", "Measuring latency"} <= set(last)
    assert all(done == total for done, total in last.values())


def test_two_runs_from_two_folders_give_the_same_bytes(
    written: WrittenOutcome, tmp_path: Path
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


def test_another_seed_gives_another_network(written: WrittenOutcome, checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    outcome = stages.run_stages(loaded, quick_settings(seed=1))
    assert outcome.model != written.outcome.model


def test_without_purification_images_are_made_once_and_of_the_original(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    told: list[str] = []
    outcome = stages.run_stages(
        loaded,
        quick_settings(purify={"mode": "none"}),
        progress=lambda description, done, _: told.append(description) if done == 0 else None,
    )
    assert same_weights(outcome.original.module, outcome.purified.module)
    assert told.count("Synthesising images") == 1


def test_the_compressed_network_is_taught_on_images_of_the_purified_one(
    written: WrittenOutcome,
) -> None:
    outcome, settings = written.outcome, quick_settings()
    fresh = synthesize(outcome.purified, settings.synthesize.recovery(), seed=settings.seed + 1)
    first = synthesize(outcome.original, settings.synthesize, seed=settings.seed)
    expected = torch.cat([first.pixels, fresh.pixels])
    assert torch.equal(outcome.images.pixels, expected)


def test_the_purified_network_teaches_and_not_the_one_that_came(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught, real = [], stages.finetune

    @functools.wraps(real)
    def watched(network: Any, teacher: Any, *rest: Any, **named: Any) -> Any:
        taught.append(teacher)
        return real(network, teacher, *rest, **named)

    monkeypatch.setattr(stages, "finetune", watched)
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    outcome = stages.run_stages(loaded, quick_settings())
    assert not same_weights(outcome.original.module, outcome.purified.module)
    assert [same_weights(one.module, outcome.purified.module) for one in taught] == [True]


def test_the_decks_way_clamps_truncates_and_tunes_on_its_own_images(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    settings = settings_for(load_target("cpu"), overlay(QUICK, {"purify": {"mode": "deck"}}))
    assert settings.finetune.compare == "labels"
    assert settings.ranks.factors == "weights"
    outcome = stages.run_stages(loaded, settings)
    assert same_weights(outcome.original.module, outcome.purified.module)
    clamp = outcome.scaled.history[-1]
    assert 0 < clamp.settings["tau"] <= 1  # chosen, as none was given
    first = synthesize(loaded, settings.synthesize, seed=settings.seed)
    assert not torch.equal(outcome.images.pixels, first.pixels)
    assert len(outcome.images) == settings.synthesize.count
    asked = overlay(QUICK, {"purify": {"mode": "deck"}, "scale": {"tau": 0.4}})
    told = stages.run_stages(loaded, settings_for(load_target("cpu"), asked))
    assert told.scaled.history[-1].settings["tau"] == 0.4


def test_what_the_command_says_gives_the_same_settings(written: WrittenOutcome) -> None:
    again = written.report["reproduce"]
    settings = settings_from(PipelineSettings, tomllib.loads(again["settings_toml"]))
    assert settings == quick_settings()
    assert again["command"] == (
        "edgeclean compress model.safetensors --arch net.py:make --input-shape 3x12x12 --classes 4 "
        "--mean=0.5,0.5,0.5 --std=0.25,0.25,0.25 --config edgeclean.toml -o build"
    )


def test_a_late_failure_leaves_the_old_bundle_whole_and_nothing_beside_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    compress(checkpoint, spec(), output, quick_settings(), code_folder=checkpoint.parent)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(ParityError):
        compress(
            checkpoint,
            spec(),
            output,
            quick_settings(parity={"tolerance": 1e-12}),
            code_folder=checkpoint.parent,
        )
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"ranks": {"ratio": 1000.0}}, RatioError, "cannot be met"),
        ({"decompose": {"keep": ["nothing"]}}, UsageError, "no layer of this network"),
        ({"target": "jetson-nano", "export": {"opset": 17}}, UsageError, "opset 7 to 13"),
        ({"target": "toaster"}, UsageError, "not known"),
    ],
)
def test_a_refusal_writes_nothing(
    checkpoint: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    settings = quick_settings(**overlay(QUICK, changes))
    with pytest.raises(error, match=words):
        compress(checkpoint, spec(), tmp_path / "b", settings, code_folder=checkpoint.parent)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_checkpoint_and_an_output_in_use_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputRejectedError, match="cannot be read"):
        compress(tmp_path / "no.pth", spec(), tmp_path / "b", quick_settings())
    from edgeclean.bundles.atomic import hold_folder

    with hold_folder(tmp_path / "b"), pytest.raises(OutputInUseError):
        compress(
            checkpoint, spec(), tmp_path / "b", quick_settings(), code_folder=checkpoint.parent
        )


def test_a_suspicion_stops_the_run_only_if_asked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def suspicious_scan(*_: Any, **__: Any) -> Any:
        return scan_report()

    monkeypatch.setattr(stages, "scan", suspicious_scan)
    with pytest.raises(BackdoorSuspectedError, match="class 2"):
        compress(
            checkpoint,
            spec(),
            tmp_path / "b",
            quick_settings(),
            policy=Policy(fail_on_backdoor=True),
            code_folder=checkpoint.parent,
        )
    assert list(tmp_path.iterdir()) == []
    written = compress(
        checkpoint, spec(), tmp_path / "b", quick_settings(), code_folder=checkpoint.parent
    )
    assert written.report["scan"]["verdict"] == "suspected"
    assert (written.bundle.path / "trigger-0-class-2.png").is_file()
    verify_bundle(written.bundle.path)


def test_a_scan_and_a_plan_stop_where_they_should(checkpoint: Path) -> None:
    folder = checkpoint.parent
    loaded, images, found = scan_checkpoint(
        checkpoint, spec(), quick_settings(), code_folder=folder
    )
    assert [record.stage for record in loaded.history] == ["load"]
    assert len(images) == 24
    assert len(found.searches) == len(quick_settings().scan.searches)
    original, planned = plan_checkpoint(checkpoint, spec(), quick_settings(), code_folder=folder)
    shape = spec().input_shape
    assert count_macs(original.module, shape) >= 2 * count_macs(planned.module, shape)


def test_the_target_decides_what_was_left_open() -> None:
    orin, nano = load_target("orin-nano"), load_target("jetson-nano")
    assert settings_for(orin, {}).ranks.rank_multiple == orin.rank_multiple() == 8
    assert settings_for(nano, {}).export.opset == nano.opset == 13
    assert settings_for(orin, {"ranks": {"rank_multiple": 3}}).ranks.rank_multiple == 3
    assert settings_for(orin, {}).target == "orin-nano"
    with pytest.raises(UsageError, match="opset"):
        settings_for(nano, {"export": {"opset": 17}})


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
    assert opset_of(open_onnx(written.outcome.model)) == 13
    assert written.bundle.manifest["target"]["name"] == "jetson-nano"
    assert written.report["target"]["name"] == "jetson-nano"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"synthesise": {}}, "unknown key 'synthesise'; nearest: synthesize"),
        ({"ranks": {"ration": 2}}, "ranks: unknown key 'ration'; nearest: ratio"),
        ({"ranks": {"ratio": "two"}}, "ranks: ratio is 'two'; it must be a number"),
        ({"ranks": {"ratio": True}}, "ratio is 'True'; it must be a number"),
        ({"ranks": {"ratio": 0.5}}, "must be 1 or more"),
        ({"ranks": {"rank_multiple": 2.0}}, "must be a whole number"),
        ({"ranks": {"rank_multiple": True}}, "must be a whole number"),
        ({"ranks": {"rank-multiple": 2, "rank_multiple": 2}}, "given twice"),
        ({"ranks": {"measure": "flops"}}, "must be one of macs, params"),
        ({"ranks": {"overrides": {"0": [1, 2, 3]}}}, "it must be a list"),
        ({"decompose": {"keep": "conv1"}}, "it must be a list"),
        ({"scale": {"tau": "low"}}, "it must be a number"),
        ({"ranks": 2}, "it must be a table"),
        ({"finetune": {"reestimate": 1}}, "must be true or false"),
        ({"seed": -1}, "0..2\\^63-1"),
    ],
)
def test_configuration_is_strict(entries: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings_from(PipelineSettings, entries)


def test_configuration_takes_what_toml_has() -> None:
    settings = settings_from(
        PipelineSettings,
        {
            "ranks": {"ratio": 3, "rank-multiple": 4, "overrides": {"a.b": [3, 4]}},
            "decompose": {"keep": ["x", "y"]},
            "scale": {"tau": 1},
            "export": {"batch": 4},
            "purify": {"unlearn": {"steps": 7}},
        },
    )
    assert (settings.ranks.ratio, settings.ranks.rank_multiple) == (3.0, 4)
    assert type(settings.ranks.ratio) is float
    assert settings.ranks.overrides == {"a.b": (3, 4)}
    assert settings.decompose.keep == ("x", "y")
    assert (settings.scale.tau, settings.export.batch) == (1.0, 4)
    assert settings.purify.unlearn.steps == 7


def test_what_is_not_the_default_survives_toml() -> None:
    settings = settings_from(
        PipelineSettings,
        {
            "seed": 3,
            "target": 'a "quoted"\\\x7f name',
            "ranks": {"ratio": 1e300, "overrides": {'layer."1"\n': [3, 4]}},
            "decompose": {"keep": ["ü", "\u202e"]},
            "purify": {"unlearn": {"steps": 7}},
        },
    )
    assert (
        settings_from(PipelineSettings, tomllib.loads(to_toml(non_default(settings)))) == settings
    )
    assert to_toml(non_default(PipelineSettings())) == ""


def test_a_configuration_file_is_read_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(path)
    path.write_text("seed = 1\n[ranks]\nratio = 2\n", encoding="utf-8")
    assert read_config(path) == {"seed": 1, "ranks": {"ratio": 2}}
    for contents in (b"seed = ", b"\xff", b"a = " + b"[" * 5000):
        path.write_bytes(contents)
        with pytest.raises(UsageError, match="not a TOML file"):
            read_config(path)
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(UsageError, match="larger than"):
        read_config(path)


def test_overlay_goes_into_tables() -> None:
    under = {"a": {"x": 1, "y": 2}, "b": 1}
    assert overlay(under, {"a": {"y": 3}, "b": {"z": 1}}) == {"a": {"x": 1, "y": 3}, "b": {"z": 1}}
    assert under == {"a": {"x": 1, "y": 2}, "b": 1}


def test_a_stopwatch_adds_up_and_tells() -> None:
    told: list[tuple[str, int, int]] = []
    watch = Stopwatch(lambda *step: told.append(step))

    def load_checkpoint(number: int) -> int:
        if number < 0:
            raise ValueError
        return sum(range(number))

    assert watch(load_checkpoint, "Loading")(1000) == 499_500
    first = watch.seconds["load"]
    watch(load_checkpoint)(3_000_000)
    second = watch.seconds["load"]
    assert second > first
    watch(load_checkpoint)(0)
    assert watch.seconds["load"] >= second
    with pytest.raises(ValueError):  # noqa: PT011 - any
        watch(load_checkpoint, "Loading")(-1)
    assert told == [("Loading", 0, 1), ("Loading", 1, 1)] * 2
    peak = peak_memory_mib()
    assert peak is not None
    assert 10 < peak < 100_000


def test_the_global_generators_are_left_alone(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint, spec(), code_folder=checkpoint.parent)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    stages.run_stages(loaded, quick_settings())
    assert torch.equal(torch.get_rng_state(), state)
