"""A run takes up what an earlier one finished, under a key of all that decides it."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from kept_stages import BOUND, FUNCTIONS, KEPT
from kept_things import Ear, small_network
from latency_tables import made_up_table
from report_evidence import scan_report
from small_checkpoint import quick_settings, spec, write_checkpoint
from tiny_networks import tiny_network
from torch import nn

from edgeclean import pipeline, runner, shrinking
from edgeclean.bundle.bundle import hold_output
from edgeclean.compression.goals import FileSize
from edgeclean.compression.plan import LayerPlan, RankPlan
from edgeclean.networks.state import PurifiedNetwork, SyntheticImages, record
from edgeclean.pipeline import compress
from edgeclean.runner import Cache, stage_key


def plan(loss: float) -> RankPlan:
    layer = LayerPlan(layer="0", ranks=(1, 2), reason="", loss=loss)
    counts = {"ratio_asked": 2.0, "images": 1, "params_before": 9, "macs_before": 9}
    return RankPlan(settings={}, measure="macs", layers=(layer,), **counts)  # type: ignore[arg-type]


def test_a_key_changes_with_all_that_decides_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, network, report = quick_settings(), small_network(), scan_report()
    images = SyntheticImages(pixels=torch.rand(2, 3, 4, 4), labels=torch.zeros(2).long(), origin="")
    given: dict[str, object] = {
        "network": network,
        "images": images,
        "report": report,
        "plan": plan(0.5),
        "table": made_up_table(tiny_network()),
        "file": FileSize(bytes_per_param=4.0, overhead_bytes=7),
        "settings": settings.scan,
        "seed": 0,
    }
    first = stage_key("scan", given)
    assert first == stage_key("scan", dict(reversed(given.items()))), "their order says nothing"
    assert first == stage_key("scan", given | {"network": small_network()})
    bent, coded, moved, slow = (small_network() for _ in range(4))
    bent.module[0].bias.data[0] += 1e-3  # type: ignore[index, union-attr, operator]
    moved.module[1].running_mean[0] += 1e-3  # type: ignore[index, union-attr, operator]
    slow.module[1].eps = 1e-4  # type: ignore[index, union-attr]
    coded.module.forward = lambda pixels: nn.Sequential.forward(coded.module, -pixels)  # type: ignore[method-assign, arg-type]
    entry = record("purify", network.module, network.spec, settings.purify, {"rounds": []})
    other_images = replace(images, pixels=images.pixels.flip(0))
    strided = images.pixels.contiguous(memory_format=torch.channels_last)
    changes: list[dict[str, object]] = [
        {"network": bent},
        {"network": moved},
        {"network": slow},
        {"network": coded},
        {"network": replace(network, source_sha256="cd" * 32)},
        {"network": replace(network, history=(entry,))},
        {"network": small_network(PurifiedNetwork)},
        {"images": other_images},
        {"images": replace(images, pixels=strided)},
        {"images": replace(images, labels=torch.ones(2).long())},
        {"report": replace(report, images=report.images + 1)},
        {"plan": plan(0.25)},
        {"plan": None},
        {"table": made_up_table(tiny_network(channels=12))},
        {"table": None},
        {"file": FileSize(bytes_per_param=2.0, overhead_bytes=7)},
        {"settings": replace(settings.scan, steps=4)},
        {"settings": settings.synthesize},
        {"seed": 1},
        {"seed": True},
        {"more": None},
    ]
    keys = [stage_key("scan", given | change) for change in changes]
    keys += [stage_key("purify", given)]
    monkeypatch.setattr(runner, "_machine", lambda: {"threads": 99})
    keys += [stage_key("scan", given)]
    monkeypatch.undo()
    monkeypatch.setattr(runner, "own_code", lambda: "another version")
    keys += [stage_key("scan", given)]
    assert len({first, *keys}) == 1 + len(keys)


@pytest.mark.parametrize("package", ["edgeclean", "exporters"])
def test_the_hash_of_the_code_is_of_both_packages(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = runner.own_code.__wrapped__()
    folder_of, copy = runner._package_folder, tmp_path / package
    shutil.copytree(folder_of(package), copy)
    monkeypatch.setattr(
        runner, "_package_folder", lambda name: copy if name == package else folder_of(name)
    )
    assert runner.own_code.__wrapped__() == before, "where they lie does not matter"
    with next(copy.glob("p*.py")).open("a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    assert runner.own_code.__wrapped__() != before


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("source"))


def run(checkpoint: Path, output: Path, cache: Path | None, ear: Ear) -> dict[str, bytes]:
    """The reproducible files of one run."""
    compress(
        checkpoint,
        spec(),
        output,
        quick_settings(),
        code_folder=checkpoint.parent,
        cache=None if cache is None else Cache(folder=cache, notify=ear),
    )
    return {name: (output / name).read_bytes() for name in BOUND}


def test_a_second_run_takes_up_every_stage_and_gives_the_same_bytes(
    checkpoint: Path, tmp_path: Path, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    plain = run(checkpoint, tmp_path / "plain", None, ear)
    assert run(checkpoint, tmp_path / "first", cache, ear) == plain
    assert ear.heard == []
    replaced = set()
    for module, name in product((pipeline, shrinking), FUNCTIONS):
        if hasattr(module, name):

            @functools.wraps(getattr(module, name))
            def refuse(*_: object, **__: object) -> None:
                raise AssertionError("the stage was run again")

            monkeypatch.setattr(module, name, refuse)
            replaced.add(name)
    assert replaced == set(FUNCTIONS)
    assert run(checkpoint, tmp_path / "second", cache, ear) == plain
    taken = [line.partition(":")[0] for line in ear.heard]
    assert sorted(set(taken)) == sorted(KEPT)
    monkeypatch.undo()
    ear.heard.clear()
    for path in cache.glob("*.kept"):  # tampered with: ignored, made again, the same bytes
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    assert run(checkpoint, tmp_path / "third", cache, ear) == plain
    assert len(ear.heard) == len(taken)
    assert all("is ignored" in line for line in ear.heard)


def test_a_stage_that_fails_keeps_those_before_it(
    checkpoint: Path, tmp_path: Path, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    @functools.wraps(shrinking.finetune)
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shrinking, "finetune", fail)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, tmp_path / "out", tmp_path / "cache", ear)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    run(checkpoint, tmp_path / "out", tmp_path / "cache", ear)
    taken = {line.partition(":")[0] for line in ear.heard}
    assert taken == set(KEPT) - {"finetune"}
    with hold_output(tmp_path / "out"):
        pass
