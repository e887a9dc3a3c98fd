"""A run takes up what an earlier one finished, under a key of all that decides it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from kept_things import Ear, small_network
from small_checkpoint import quick_settings, spec, write_checkpoint
from torch import nn

from edgeclean import pipeline
from edgeclean.bundles.atomic import hold_folder
from edgeclean.pipeline import compress
from edgeclean.runner import Cache, KeptStages
from edgeclean.states import LoadedNetwork

KEPT = ("synthesize", "scan", "purify", "choose_ranks", "finetune")
BOUND = ("model.onnx", "manifest.json", "golden.safetensors", "bom.cdx.json")


def test_a_key_changes_with_all_that_decides_a_result(tmp_path: Path, ear: Ear) -> None:
    settings = quick_settings()

    def key(network: LoadedNetwork, seed: int, *chosen: object) -> str:
        kept = KeptStages(tmp_path, network, seed, ear)
        for one in chosen:
            kept(pipeline.scan, one)
        return kept._key

    network = small_network()
    chosen = (settings.synthesize, settings.scan)
    first = key(network, 0, *chosen)
    assert first == key(small_network(), 0, *chosen)
    others = {
        key(network, 1, *chosen),
        key(network, 0, settings.scan),
        key(network, 0, settings.synthesize, dataclasses.replace(settings.scan, steps=4)),
        key(network, 0, dataclasses.replace(settings.synthesize, steps=4), settings.scan),
        key(dataclasses.replace(network, source_sha256="cd" * 32), 0, *chosen),
    }
    bent = small_network()
    bent.module[0].bias.data[0] += 1e-3  # type: ignore[index, union-attr, operator]
    coded = small_network()
    coded.module.forward = lambda pixels: nn.Sequential.forward(coded.module, -pixels)  # type: ignore[method-assign, arg-type]
    others |= {key(bent, 0, *chosen), key(coded, 0, *chosen)}
    assert len(others) == 7
    assert first not in others


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
        cache=None if cache is None else Cache(folder=cache, tell=ear),
    )
    return {name: (output / name).read_bytes() for name in BOUND}


def test_a_second_run_takes_up_every_stage_and_gives_the_same_bytes(
    checkpoint: Path, tmp_path: Path, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    plain = run(checkpoint, tmp_path / "plain", None, ear)
    assert run(checkpoint, tmp_path / "first", cache, ear) == plain
    assert ear.heard == []
    for name in KEPT:
        stage = getattr(pipeline, name)

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the stage was run again")

        refuse.__name__ = stage.__name__
        monkeypatch.setattr(pipeline, name, refuse)
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
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    fail.__name__ = "finetune"
    monkeypatch.setattr(pipeline, "finetune", fail)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, tmp_path / "out", tmp_path / "cache", ear)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    run(checkpoint, tmp_path / "out", tmp_path / "cache", ear)
    taken = {line.partition(":")[0] for line in ear.heard}
    assert taken == set(KEPT) - {"finetune"}
    with hold_folder(tmp_path / "out"):
        pass
