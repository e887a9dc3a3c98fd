"""What is kept comes back byte by byte, or not at all; what may be wrong is not used."""

from __future__ import annotations

import hashlib
import hmac
import multiprocessing
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
from kept_things import Ear

from edgeclean.child.inside import mapped_bytes
from edgeclean.files.store import SEAL_BYTES, SECRET, TAG, Store


def test_a_result_comes_back_as_it_was_and_only_under_its_key(store: Store, ear: Ear) -> None:
    assert store.get("one") is None
    store.put("one", b"result")
    assert store.get("one") == b"result"
    assert store.get("other") is None
    assert ear.heard == []
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in store.folder.iterdir()} == {SECRET, TAG, "one.kept"}


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


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_damaged_secret_is_told_with_what_to_do(store: Store, ear: Ear, length: int) -> None:
    store.put("one", b"result")
    (store.folder / SECRET).write_bytes(b"x" * length)
    store.put("two", b"result")
    assert store.get("two") is None
    assert len(ear.heard) == 1
    assert (
        f"secret is damaged; nothing is kept or read until you remove {store.folder}"
        in (ear.heard[0])
    )


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


def test_a_folder_in_the_place_of_a_result_is_told_and_left(store: Store, ear: Ear) -> None:
    store.put("one", b"result")
    inside = store.folder / "two.kept" / "mine"
    inside.parent.mkdir()
    inside.touch()
    assert store.get("two") is None
    store.put("two", b"result")
    assert inside.exists()
    assert ear.heard[0] == "cache: two.kept cannot be read (not a regular file); made again"
    assert ear.heard[1] == "cache: two.kept is no plain file, and is not replaced"
    assert len(ear.heard) == 2
    assert {path.name for path in store.folder.iterdir()} == {SECRET, TAG, "one.kept", "two.kept"}


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
    assert {path.name for path in store.folder.iterdir()} == {SECRET, TAG, "one.kept"}


def digest(number: int) -> str:
    return f"{number:064x}"


def aged(path: Path, age: float = 0) -> Path:
    path.touch()
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_the_oldest_go_where_there_is_no_room(tmp_path: Path, ear: Ear) -> None:
    store = Store(tmp_path / "cache", ear, limit_bytes=300)
    for age in range(3):
        store.put(digest(age), bytes(100))
        aged(store.folder / f"{digest(age)}.kept", age)
    left = aged(store.folder / ".edgeclean-abc_1.partial")
    store.put(digest(9), bytes(100))
    names = {path.name for path in store.folder.iterdir()}
    assert {SECRET, TAG, f"{digest(9)}.kept"} <= names
    assert f"{digest(1)}.kept" not in names
    assert left.name not in names, "what a killed writer left"


def test_nothing_but_its_own_is_ever_removed(tmp_path: Path, ear: Ear) -> None:
    """However old, however large, and although the folder is the cache's own."""
    store = Store(tmp_path / "cache", ear, limit_bytes=300)
    store.put(digest(0), bytes(100))
    (tmp_path / "elsewhere").write_bytes(bytes(1000))
    mine = ["tmpabc", "notes.kept", f"{digest(1)}.kept~", "a.partial", ".edgeclean-A B.partial"]
    for name in mine:
        aged(store.folder / name).write_bytes(bytes(1000))
        aged(store.folder / name)
    for name in (f"{digest(2)}.kept", ".edgeclean-link.partial"):
        (store.folder / name).symlink_to(tmp_path / "elsewhere")
    (store.folder / f"{digest(3)}.kept").mkdir()
    os.mkfifo(store.folder / f"{digest(4)}.kept")
    before = {path.name: path.lstat().st_mode for path in store.folder.iterdir()}
    for number in (5, 2, 3, 4):
        store.put(digest(number), bytes(100))
    after = {path.name: path.lstat().st_mode for path in store.folder.iterdir()}
    assert after == {**before, f"{digest(5)}.kept": after[f"{digest(5)}.kept"]}
    assert ["is no plain file, and is not replaced" in line for line in ear.heard] == [True] * 3


@pytest.mark.parametrize("name", ["secret", ".hidden", "x.kept", "CACHEDIR.TAG", "folder/x"])
def test_a_folder_that_was_not_made_here_is_left_alone(name: str, tmp_path: Path, ear: Ear) -> None:
    mine = tmp_path / "cache" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    os.utime(mine, (1e9, 1e9))
    store = Store(tmp_path / "cache", ear)
    store.put("one", b"result")
    assert store.get("one") is None
    assert [path for path in store.folder.rglob("*") if path.is_file()] == [mine]
    assert "was not made by edgeclean; nothing is kept there" in ear.heard[0]


@pytest.mark.parametrize("left", ["nothing", "the folder", "an empty tag"])
def test_a_folder_that_a_killed_run_began_is_used(left: str, store: Store, ear: Ear) -> None:
    if left != "nothing":
        store.folder.mkdir()
    if left == "an empty tag":
        (store.folder / TAG).touch()
    store.put("one", b"result")
    assert store.get("one") == b"result"
    assert ear.heard == []
    assert (
        (store.folder / TAG).read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")
    )


@pytest.mark.parametrize("name", ["secret", "CACHEDIR.TAG", f"{'0' * 64}.kept"])
def test_a_pipe_in_the_cache_holds_nothing_up(store: Store, ear: Ear, name: str) -> None:
    key = "0" * 64
    store.put(key, b"result")
    (store.folder / name).unlink()
    os.mkfifo(store.folder / name)

    def give_up(*_: object) -> None:
        raise TimeoutError("opening a pipe waits for a writer that never comes")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        assert store.get(key) == (b"result" if name == "CACHEDIR.TAG" else None)
        store.put(key, b"other")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert stat.S_ISFIFO((store.folder / name).lstat().st_mode)  # nobody's to replace
    assert ear.heard


@pytest.mark.parametrize("length", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 7])
def test_the_seal_is_that_of_the_whole(store: Store, ear: Ear, length: int) -> None:
    """Sealed in parts, since OpenSSL takes no 2 GiB at once; what was kept before still holds."""
    contents = os.urandom(length)
    store.put("one", contents)
    kept, secret = (store.folder / "one.kept").read_bytes(), (store.folder / SECRET).read_bytes()
    assert kept[:SEAL_BYTES] == hmac.digest(secret, b"one\0" + contents, "sha256")
    assert store.get("one") == contents
    assert ear.heard == []


@pytest.mark.parametrize("length", [2**30, 2**31 - 1, 2**31, 2**33])
def test_an_entry_that_became_a_hole_is_not_read(store: Store, ear: Ear, length: int) -> None:
    """As a power cut or a failing disk leaves it: in a process that has no room for it."""
    store.put("one", b"result")
    os.truncate(store.folder / "one.kept", length)
    assert _in_little_memory(store.folder) == [
        "None",
        "cache: one.kept was changed or is not ours; it is ignored",
    ]
    store.put("one", b"result")
    assert store.get("one") == b"result"


def test_an_entry_that_memory_has_no_room_for_is_made_again(store: Store, ear: Ear) -> None:
    store.put("one", os.urandom(2**24))
    os.truncate(store.folder / "one.kept", 2**28)  # a sixteenth is data: no hole
    assert _in_little_memory(store.folder) == [
        "None",
        "cache: one.kept cannot be read (no memory is left for it); made again",
    ]


@pytest.mark.slow
def test_a_result_of_more_than_two_gigabytes_comes_back(tmp_path: Path, ear: Ear) -> None:
    store = Store(tmp_path / "cache", ear, limit_bytes=2**32)
    contents = bytes(2**31 + 1)
    store.put("one", contents)
    assert store.get("one") == contents
    assert ear.heard == []


def test_a_result_above_the_limit_is_not_kept_and_costs_no_other(tmp_path: Path, ear: Ear) -> None:
    store = Store(tmp_path / "cache", ear, limit_bytes=300)
    store.put(digest(0), bytes(100))
    store.put(digest(1), bytes(300))
    assert ear.heard == ["cache: a result of 300 bytes is more than all that is kept; going on"]
    assert store.get(digest(0)) == bytes(100)
    assert store.get(digest(1)) is None


def _in_little_memory(folder: Path) -> list[str]:
    """What a process with 128 MiB to spare gets under the key "one", and what it is told."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_get_in_little_memory, (folder,))


def _get_in_little_memory(folder: Path) -> list[str]:
    ear = Ear()
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes() + 2**27,) * 2)
    return [str(Store(folder, ear).get("one")), *ear.heard]


def test_runs_that_share_a_full_cache_warn_of_nothing(tmp_path: Path) -> None:
    """Each removes old results while the others look at them."""
    with multiprocessing.get_context("fork").Pool(3) as pool:
        heard = pool.starmap(_put_many, [(tmp_path / "cache", number) for number in range(3)])
    assert heard == [[]] * 3


def _put_many(folder: Path, number: int) -> list[str]:
    ear = Ear()
    store = Store(folder, ear, limit_bytes=20_000)
    for turn in range(150):
        store.put(hashlib.sha256(f"{number} {turn}".encode()).hexdigest(), bytes(1500))
    return sorted(set(ear.heard))
