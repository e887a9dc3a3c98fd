"""What is kept comes back bit by bit, or not at all; what is kept may be wrong, and is not used."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from report_evidence import scan_report
from small_checkpoint import quick_settings, spec, write_checkpoint
from torch import nn

from edgeclean import stages
from edgeclean.bundles.atomic import hold_folder
from edgeclean.pipeline import compress
from edgeclean.resume.stages import Cache, KeptStages
from edgeclean.resume.store import SECRET, Store
from edgeclean.resume.values import from_bytes, to_bytes
from edgeclean.states import LoadedNetwork, PurifiedNetwork, SyntheticImages

KEPT = ("synthesize", "scan", "purify", "choose_ranks", "finetune")
BOUND = ("model.onnx", "manifest.json", "golden.safetensors", "bom.cdx.json")


class Ear:
    """Hears what the cache tells."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, line: str) -> None:
        self.heard.append(line)


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def store(tmp_path: Path, ear: Ear) -> Store:
    return Store(tmp_path / "cache", ear)


# The folder.


def test_a_result_comes_back_as_it_was_and_only_under_its_key(store: Store, ear: Ear) -> None:
    assert store.get("one") is None
    store.put("one", b"result")
    assert store.get("one") == b"result"
    assert store.get("other") is None
    assert ear.heard == []
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in store.folder.iterdir()} == {SECRET, "one.kept"}


def test_every_changed_byte_is_seen(store: Store, ear: Ear) -> None:
    store.put("one", b"result")
    path = store.folder / "one.kept"
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        assert store.get("one") is None
    for part in (b"", whole[:-1], whole[:20], whole + b"x"):
        path.write_bytes(part)
        assert store.get("one") is None
    assert len(ear.heard) == len(whole) + 4
    assert all("one.kept was changed or is not ours; it is ignored" in line for line in ear.heard)
    store.put("one", b"result")
    assert store.get("one") == b"result"


def test_a_result_under_another_name_is_not_that_names(store: Store, ear: Ear) -> None:
    store.put("one", b"result")
    (store.folder / "one.kept").rename(store.folder / "other.kept")
    assert store.get("other") is None
    assert len(ear.heard) == 1


def test_another_folders_result_is_not_taken(tmp_path: Path, store: Store, ear: Ear) -> None:
    theirs = Store(tmp_path / "theirs", ear)
    theirs.put("one", b"evil")
    store.put("two", b"ours")
    (tmp_path / "theirs" / "one.kept").rename(store.folder / "one.kept")
    assert store.get("one") is None
    assert store.get("two") == b"ours"


@pytest.mark.parametrize("place", ["", SECRET])
def test_a_folder_that_others_may_write_is_not_used(store: Store, ear: Ear, place: str) -> None:
    store.put("one", b"result")
    (store.folder / place).chmod(0o777)
    assert store.get("one") is None
    store.put("two", b"result")
    assert not (store.folder / "two.kept").exists()
    assert "others may write" in ear.heard[0]


def test_links_and_pipes_are_nobodys_results(store: Store, ear: Ear, tmp_path: Path) -> None:
    store.put("one", b"result")
    (store.folder / "link.kept").symlink_to(store.folder / "one.kept")
    os.mkfifo(store.folder / "pipe.kept")
    assert store.get("link") is None
    assert store.get("pipe") is None
    assert len(ear.heard) == 2


def test_without_room_or_rights_it_goes_on_without(
    tmp_path: Path, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    Store(tmp_path / "file" / "cache", ear).put("one", b"result")
    store = Store(tmp_path / "cache", ear)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    store.put("one", b"result")
    monkeypatch.setattr(os, "fsync", full)
    store.put("two", b"result")
    assert [line.rpartition("(")[2] for line in ear.heard] == [
        "Not a directory); going on",
        "No space left on device); going on",
    ]
    assert {path.name for path in store.folder.iterdir()} == {SECRET, "one.kept"}


def test_the_oldest_go_where_there_is_no_room(tmp_path: Path, ear: Ear) -> None:
    store = Store(tmp_path / "cache", ear, limit_bytes=300)
    for age, key in enumerate(("old", "older", "oldest")):
        store.put(key, bytes(100))
        os.utime(store.folder / f"{key}.kept", (1e9 - age, 1e9 - age))
    left = store.folder / "tmpabc"
    left.touch()
    os.utime(left, (1e9, 1e9))
    store.put("new", bytes(100))
    names = {path.name for path in store.folder.iterdir()}
    assert {SECRET, "new.kept"} <= names
    assert "older.kept" not in names
    assert "tmpabc" not in names, "what a killed writer left"


# Results as bytes.


def images() -> SyntheticImages:
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return SyntheticImages(
        pixels=pixels.contiguous(memory_format=torch.channels_last),
        labels=torch.tensor([1, 0]),
        origin="a test",
    )


def test_tensors_come_back_with_their_numbers_and_strides() -> None:
    before = images()
    after = from_bytes(to_bytes(before))
    assert torch.equal(after.pixels, before.pixels)
    assert after.pixels.stride() == before.pixels.stride()
    assert torch.equal(after.labels, before.labels)
    assert after.origin == before.origin


def test_a_report_comes_back_whole() -> None:
    before = scan_report()
    after = from_bytes(to_bytes(before))
    assert type(after) is type(before)
    assert after.summary() == before.summary()
    assert after.searches == before.searches
    for one, other in zip(after.suspects, before.suspects, strict=True):
        assert all(map(torch.equal, one.trigger.preview(), other.trigger.preview()))


@dataclasses.dataclass(frozen=True)
class Stranger:
    """Not among what may be kept."""

    size: int = 1


def test_only_listed_classes_are_written_or_built() -> None:
    with pytest.raises(TypeError, match="a Stranger cannot be kept"):
        to_bytes(Stranger())
    tree = '{"class": "Popen", "fields": {}}'
    with pytest.raises(KeyError):
        from_bytes(bytes(safetensors.torch.save({}, metadata={"tree": tree})))


def small_network(kind: type = LoadedNetwork, width: int = 3) -> LoadedNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(width)
        module = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(2))
    return kind(module=module.eval(), spec=spec(), source_sha256="ab" * 32)  # type: ignore[no-any-return]


def test_a_network_comes_back_in_the_layers_of_another() -> None:
    before = small_network(PurifiedNetwork)
    before.module[0].weight.data = before.module[0].weight.data.contiguous(  # type: ignore[index]
        memory_format=torch.channels_last
    )
    skeleton = small_network()
    kept = {name: tensor.clone() for name, tensor in skeleton.module.state_dict().items()}
    after = from_bytes(to_bytes(before), skeleton)
    assert type(after) is PurifiedNetwork
    for name, tensor in before.module.state_dict().items():
        again = after.module.state_dict()[name]
        assert torch.equal(again, tensor)
        assert again.stride() == tensor.stride()
    for name, tensor in skeleton.module.state_dict().items():
        assert torch.equal(tensor, kept[name]), "the skeleton was changed"
    with pytest.raises(ValueError, match="is not of these layers"):
        from_bytes(to_bytes(before), small_network(width=4))
    with pytest.raises(ValueError, match="needs one of the same layers"):
        from_bytes(to_bytes(before))


# Keys.


def test_a_key_changes_with_all_that_decides_a_result(tmp_path: Path, ear: Ear) -> None:
    settings = quick_settings()

    def key(network: LoadedNetwork, seed: int, *chosen: object) -> str:
        kept = KeptStages(tmp_path, network, seed, ear)
        for one in chosen:
            kept(stages.scan, one)
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


# Whole runs.


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
        stage = getattr(stages, name)

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the stage was run again")

        refuse.__name__ = stage.__name__
        monkeypatch.setattr(stages, name, refuse)
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
    monkeypatch.setattr(stages, "finetune", fail)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, tmp_path / "out", tmp_path / "cache", ear)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    run(checkpoint, tmp_path / "out", tmp_path / "cache", ear)
    taken = {line.partition(":")[0] for line in ear.heard}
    assert taken == set(KEPT) - {"finetune"}
    with hold_folder(tmp_path / "out"):
        pass
