"""Systems and moments that are rare: no exchange of folders, a lock file that goes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_atomic import NEW, OLD, read_folder, write

from edgeclean.files import atomic
from edgeclean.files.atomic import hold_folder, staging_name


def failing_exchange(code: int) -> SimpleNamespace:
    """A C library whose renameat2 fails by an error code."""

    def renameat2(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    return SimpleNamespace(renameat2=renameat2)


CANNOT = {
    "a system without the call": SimpleNamespace(),
    "a filesystem without it": failing_exchange(errno.EINVAL),
    "an old kernel": failing_exchange(errno.ENOSYS),
}


@pytest.mark.parametrize("case", CANNOT)
def test_where_folders_cannot_be_exchanged_they_are_renamed(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: CANNOT[case])
    output = tmp_path / "build"
    for files in (OLD, NEW):
        write(output, files)
        assert read_folder(output) == files
        assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made anew"])
def test_a_lock_file_that_its_holder_removed_is_not_mistaken_for_a_lock(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets go between our opening and our locking; a third may already hold a new one."""
    flock, asked = fcntl.flock, []
    lock = tmp_path / staging_name("build") / "lock"

    def lock_late(descriptor: int, how: int) -> None:
        asked.append(descriptor)
        if len(asked) == 1:
            lock.unlink()
            if again:
                lock.touch()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    with hold_folder(tmp_path / "build") as held:
        assert len(asked) == 2
        assert os.path.samestat(os.fstat(asked[-1]), held.lock.lstat())
    assert list(tmp_path.iterdir()) == []


def test_everything_is_flushed_before_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut right after the exchange must find the files, and one later the exchange."""
    output = tmp_path / "build"
    write(output, OLD)
    fsync, swap = os.fsync, atomic.exchange
    events: list[str] = []

    def flush(descriptor: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append("/".join(place.parts[len(tmp_path.parts) :]))
        fsync(descriptor)

    def exchange(one: Path, other: Path) -> bool:
        events.append("exchange")
        return swap(one, other)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(atomic, "exchange", exchange)
    write(output, NEW)
    before, after = events[: events.index("exchange")], events[events.index("exchange") + 1 :]
    inside = {*NEW, "folder", "folder/deep"}
    partial = f"{staging_name('build')}/new/build"
    mark = {staging_name("build"), f"{staging_name('build')}/unchecked"}
    assert set(before) == {partial} | {f"{partial}/{x}" for x in inside} | mark
    assert after == [""]  # the folder that holds the output
