"""A file is replaced only where it is ours at that moment, and nothing stays beside it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeclean.errors import UsageError
from edgeclean.files.writing import Recognise, beginning, in_place

OURS = beginning(rb"ours")


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def acting_at(look: int, act: Callable[[], object]) -> Recognise:
    """Return a check of whether a file is ours, at the n-th of which somebody acts."""
    looks = 0

    def ours(place: Path) -> bool:
        nonlocal looks
        known = OURS(place)
        looks += 1
        if looks == look:
            act()
        return known

    return ours


def test_what_appears_while_a_file_is_written_is_kept(tmp_path: Path) -> None:
    place, other = tmp_path / "a", tmp_path / "b"
    other.write_bytes(b"ours")

    def appear() -> None:
        place.write_bytes(b"notes")

    ours = acting_at(1, appear)  # the second file is looked at after the first
    with (
        pytest.raises(UsageError, match="was not written by this command"),
        in_place({place: b"ours 2", other: b"ours 2"}, ours=ours),
    ):
        pass
    assert place.read_bytes() == b"notes"
    assert other.read_bytes() == b"ours"
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("how", ["rewritten", "renamed over", "made a folder"])
def test_what_takes_the_place_of_ours_meanwhile_is_kept(how: str, tmp_path: Path) -> None:
    place, other = tmp_path / "a", tmp_path / "b"
    place.write_bytes(b"ours")
    other.write_bytes(b"ours")

    def act() -> None:
        if how == "rewritten":
            place.write_bytes(b"notes")
        elif how == "renamed over":
            (tmp_path / "n").write_bytes(b"notes")
            (tmp_path / "n").rename(place)
        else:
            place.unlink()
            place.mkdir()

    ours = acting_at(3, act)  # each is looked at twice
    with (
        pytest.raises(UsageError, match=r"was not written by this command|no plain file"),
        in_place({place: b"ours 2", other: b"ours 2"}, ours=ours),
    ):
        pass
    assert place.is_dir() or place.read_bytes() == b"notes"
    assert other.read_bytes() == b"ours"
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    ("there", "step"),
    [(True, "os.link"), (True, "ctypes.dlopen"), (False, "os.link"), (True, "os.rename")],
    ids=["linked aside", "exchanged", "new", "moved away"],
)
def test_what_comes_to_the_place_at_the_last_moment_is_kept(
    there: bool, step: str, tmp_path: Path
) -> None:
    """Between the last look at a file and the call that moves it there is a moment."""
    place = tmp_path / "a"
    if there:
        place.write_bytes(b"ours")
    (tmp_path / "n").write_bytes(b"notes")

    to_do = [step]

    def act(event: str, _parameters: object) -> None:
        if event in to_do:
            to_do.clear()
            (tmp_path / "n").rename(place)

    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.addaudithook(act)
            last = place if step == "os.rename" else None
            with in_place({place: b"ours 2"}, ours=OURS, last=last):
                pass
        except UsageError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert place.read_bytes() == b"notes"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("there", [True, False])
def test_what_a_user_puts_in_the_place_of_the_new_file_outlives_the_undoing(
    there: bool, tmp_path: Path
) -> None:
    place = tmp_path / "a"
    if there:
        place.write_bytes(b"ours")

    def fail() -> None:
        with in_place({place: b"ours 2"}, ours=OURS):
            place.unlink()
            place.write_bytes(b"notes")
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert place.read_bytes() == b"notes"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("text", [b"/* ours */ ours", b" ours", b"notes on ours"])
def test_a_file_that_only_names_the_mark_is_not_ours(text: bytes, tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.write_bytes(text)
    with (
        pytest.raises(UsageError, match="was not written by this command"),
        in_place({place: b"ours 2"}, ours=OURS),
    ):
        pass
    assert place.read_bytes() == text


@pytest.mark.parametrize("there", [True, False])
def test_what_killed_runs_left_goes_with_the_next(there: bool, tmp_path: Path) -> None:
    files = {tmp_path / name: b"ours 2" for name in ("a.h", "a.c")}
    if there:
        for path in files:
            path.write_bytes(b"ours")
    died = os.fork()
    if died == 0:
        with in_place(files, ours=OURS, last=tmp_path / "a.h"):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(died, 0)[1])
    assert len(names(tmp_path)) > 2, "it left nothing behind"
    with in_place({path: b"ours 3" for path in files}, ours=OURS, last=tmp_path / "a.h"):
        pass
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {
        "a.h": b"ours 3",
        "a.c": b"ours 3",
    }


def test_what_another_run_is_writing_and_what_is_only_called_so_stays(tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.write_bytes(b"ours")
    with in_place({place: b"ours 2"}, ours=OURS):
        beside = {one for one in names(tmp_path) if one != "a"}
        assert beside
        child = os.fork()
        if child == 0:
            with in_place({tmp_path / "b": b"ours", place: b"ours 3"}, ours=OURS):
                pass
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert beside <= set(names(tmp_path))
    (tmp_path / ".edgeclean-notes").write_bytes(b"notes")
    with in_place({place: b"ours 4"}, ours=OURS):
        pass
    assert names(tmp_path) == [".edgeclean-notes", "a", "b"]
