"""What is replaced stays closed to whom it was closed to, and opens to nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeclean.files.atomic import hold_folder, replace_folder
from edgeclean.files.flushed import close_as
from edgeclean.files.writing import beginning, in_place

OTHER_GROUP = 12345
OTHER_OWNER = 12346
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to any group")


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o777


def replaced(folder: Path, files: dict[str, bytes]) -> None:
    with hold_folder(folder, lambda _folder, _named: None) as held:
        replace_folder(held, files)


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o777])
def test_a_folder_is_replaced_by_one_no_more_open(tmp_path: Path, mode: int) -> None:
    folder, usual = tmp_path / "build", tmp_path / "usual"
    folder.mkdir()
    usual.mkdir()
    folder.chmod(mode)
    for content in (b"1", b"2"):  # the empty folder, and then a filled one
        replaced(folder, {"model.onnx": content})
        assert rights(folder) == mode & rights(usual)


def test_each_file_of_a_folder_is_no_more_open_than_its_namesake(tmp_path: Path) -> None:
    folder = tmp_path / "build"
    replaced(folder, {"kit/secret": b"1", "plain": b"1"})
    (folder / "kit").chmod(0o700)
    (folder / "kit" / "secret").chmod(0o600)
    usual = rights(folder / "plain")
    replaced(folder, {"kit/secret": b"2", "kit/new": b"2", "plain": b"2"})
    found = [rights(folder / name) for name in ("kit", "kit/secret", "kit/new", "plain")]
    assert found == [0o700, 0o600, usual, usual]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_is_replaced_by_one_no_more_open(tmp_path: Path, mode: int) -> None:
    place = tmp_path / "a.h"
    place.write_bytes(b"ours")
    place.chmod(mode)
    with in_place({place: b"ours, new"}, ours=beginning(b"ours")):
        pass
    assert (place.read_bytes(), rights(place)) == (b"ours, new", mode)


@as_root
def test_what_is_replaced_keeps_its_group(tmp_path: Path) -> None:
    folder = tmp_path / "build"
    folder.mkdir(mode=0o750)
    os.chown(folder, -1, OTHER_GROUP)
    replaced(folder, {"model.onnx": b"1"})
    assert (folder.stat().st_gid, rights(folder)) == (OTHER_GROUP, 0o750)


@as_root
def test_what_root_replaces_stays_its_owners(tmp_path: Path) -> None:
    folder, place = tmp_path / "build", tmp_path / "a.h"
    replaced(folder, {"kit/secret": b"1", "plain": b"1"})
    place.write_bytes(b"ours")
    for one in (folder, folder / "kit", folder / "kit" / "secret", place):
        os.chown(one, OTHER_OWNER, -1)
        one.chmod(0o750)
    replaced(folder, {"kit/secret": b"2", "plain": b"2"})
    with in_place({place: b"ours, new"}, ours=beginning(b"ours")):
        pass
    for one in (folder, folder / "kit", folder / "kit" / "secret", place):
        assert one.stat().st_uid == OTHER_OWNER, one
        assert rights(one) & 0o027 == 0, one
    assert (folder / "plain").stat().st_uid == 0


@as_root
@pytest.mark.parametrize(
    ("mode", "expected"), [(0o640, 0o600), (0o664, 0o644), (0o604, 0o604), (0o600, 0o600)]
)
def test_a_group_that_cannot_be_kept_leaves_another_no_more_than_everybody_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, expected: int
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the folders above are closed to anybody else
    old, new = Path("old"), Path("new")
    for place, group in ((old, OTHER_GROUP), (new, 1)):
        place.touch()
        os.chown(place, 1, group)
    old.chmod(mode)
    new.chmod(0o644)
    child = os.fork()
    if child == 0:  # somebody who is not in that group
        try:
            os.setgroups([])
            os.setgid(1)
            os.setuid(1)
            close_as(os.open(new, os.O_RDONLY), old)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (new.stat().st_gid, rights(new)) == (1, expected)
