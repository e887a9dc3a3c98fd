"""A run that dies at any step, and what is done for it: by its parent, or by the next run."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from test_atomic import NEW, OLD, read_folder, write

from edgeclean.errors import UsageError
from edgeclean.files import atomic
from edgeclean.files.aftermath import clear_up
from edgeclean.files.atomic import clear_up_after, folder_in_place, hold_folder, replace_folder
from edgeclean.files.writing import in_place
from edgeclean.notes import NOTES, note, note_output, noted

STEPS = {"open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "ctypes.dlopen"}


def dies_at(step: int, run: Callable[[], object], notes: int) -> bool:
    """Run in a process that is killed before the n-th thing that it does to the filesystem."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, _parameters: object) -> None:
            nonlocal seen
            seen += event in STEPS
            if seen == step and event in STEPS:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            NOTES.set(notes)
            sys.addaudithook(count)
            run()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def every_step(run: Callable[[], object]) -> Iterator[list[list[str]]]:
    """Let a run die at its first step, its second, and so on; what it had noted each time."""
    for step in range(1, 300):
        with tempfile.TemporaryFile() as file:
            died = dies_at(step, run, file.fileno())
            yield noted(file.fileno())
        if not died:
            assert step > 15, "it did not die in between"
            return
    raise AssertionError("it never came to its end")


@pytest.fixture(params=["exchanged", "renamed"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "renamed":  # as on filesystems that cannot exchange
        monkeypatch.setattr(atomic, "exchange", lambda one, other: False)
    return str(request.param)


def refuse_mine(folder: Path, named: Path) -> None:
    if (folder / "mine").exists():
        raise UsageError(f"{named} holds what is mine")


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("who", ["the next run", "the parent", "the parent and the next run"])
def test_what_a_user_puts_in_at_the_last_moment_outlives_a_run_that_is_killed(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put in after the last look before the exchange, so only the look after finds it."""
    output = tmp_path / "build"
    moved_in = atomic._moved_in

    def meddle(held: atomic.HeldFolder) -> Path | None:
        (output / "mine").write_bytes(b"mine")
        note("put in")
        return moved_in(held)

    def run() -> None:
        with hold_folder(output, refuse_mine) as held:
            # The moment after the last look before the exchange, which nobody outside can hit.
            monkeypatch.setattr(atomic, "_moved_in", meddle)
            replace_folder(held, NEW)

    deaths_after = 0
    write(output, OLD)
    for notes in every_step(run):
        if "parent" in who:
            clear_up_after(output)
        if "next" in who:
            with suppress(UsageError), hold_folder(output, refuse_mine):
                pass
        left = read_folder(output)
        assert left.pop("mine", b"mine" if ["put in"] not in notes else None) == b"mine"
        assert left == OLD
        assert list(tmp_path.iterdir()) == [output]
        deaths_after += ["put in"] in notes
        write(output, OLD)
    assert deaths_after > 5


@pytest.mark.usefixtures("how")
@pytest.mark.parametrize("there", [True, False], ids=["replaced", "new"])
def test_what_the_parent_says_of_a_killed_run_is_so(there: bool, tmp_path: Path) -> None:
    output = tmp_path / "build"

    def run() -> None:
        note_output(output)
        with hold_folder(output, lambda *_: None) as held:
            replace_folder(held, NEW)

    said = set()
    if there:
        write(output, OLD)
    for notes in every_step(run):
        placed = clear_up(notes)
        said.add(placed)
        left = read_folder(output)
        assert left == (NEW if placed else OLD if there else {})
        assert list(tmp_path.iterdir()) == ([output] if left else [])
        if there:
            write(output, OLD)
        elif left:
            write(output, {})
            output.rmdir()
    assert said == {True, False}


def test_where_somebody_has_made_another_folder_since_both_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "build"
    write(output, OLD)
    with hold_folder(output, lambda *_: None) as held:
        staging = held.staging
    (staging / "new" / "build").mkdir(parents=True)
    (staging / "new" / "build" / "mine").touch()
    (staging / "lock").touch()
    (staging / "unchecked").write_text("1")  # no folder's number
    with pytest.raises(UsageError, match="move one of the two"), hold_folder(output, refuse_mine):
        pass
    assert (staging / "new" / "build" / "mine").exists()
    assert read_folder(output) == OLD


@pytest.mark.parametrize("linking", [True, False], ids=["linked", "not linked"])
@pytest.mark.parametrize("last", ["a.h", None])
def test_files_that_belong_together_are_all_old_or_all_new_after_a_kill(
    last: str | None, linking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    if not linking:  # as on FAT, where a card reader's files lie
        monkeypatch.setattr("os.link", no_links)
    old = {"a.h": b"old", "a.c": b"old", "other": b"mine"}
    new = {"a.h": b"new", "a.c": b"new", "a.S": b"new"}
    said = set()

    def run() -> None:
        files = {tmp_path / name: content for name, content in new.items()}
        place = None if last is None else tmp_path / last
        with in_place(files, ours=lambda _: True, last=place):
            (tmp_path / "other").read_bytes()  # what follows takes its time too

    def run_and_fail() -> None:
        with suppress(ValueError):
            failing()

    def failing() -> None:
        files = {tmp_path / name: content for name, content in new.items()}
        with in_place(files, ours=lambda _: True, last=tmp_path / (last or "a.c")):
            raise ValueError

    for way in (run, run_and_fail):
        for name in new:
            (tmp_path / name).unlink(missing_ok=True)
        for name, content in old.items():
            (tmp_path / name).write_bytes(content)
        for notes in every_step(way):
            finished = clear_up(notes)
            said.add((way is run, finished))
            assert read_folder(tmp_path) == (old | new if finished else old)
            for name in new if finished else ():
                (tmp_path / name).unlink()
            for name, content in old.items():
                (tmp_path / name).write_bytes(content)
    assert said == {(True, True), (True, False), (False, False)}


def test_an_old_file_that_cannot_be_put_back_is_not_removed(tmp_path: Path) -> None:
    aside, place = tmp_path / ".edgeclean-1", tmp_path / "place"
    aside.write_bytes(b"old")
    place.mkdir()
    notes = [["beside", "r", str(aside)], ["moved", "r", str(aside), str(place)]]
    assert not clear_up(notes)
    assert aside.read_bytes() == b"old"


@pytest.mark.usefixtures("how")
def test_several_folders_and_a_file_are_all_old_or_all_new_after_a_kill(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    file = tmp_path / "file"

    def run() -> None:
        with ExitStack() as held:
            places = []
            for folder in folders:
                note_output(folder)
                places.append(held.enter_context(hold_folder(folder, lambda *_: None)))
            with in_place({file: b"new"}, ours=lambda _: True), ExitStack() as placed:
                for place in places:
                    placed.enter_context(folder_in_place(place, {"a": b"new"}))

    def old_again() -> None:
        file.write_bytes(b"old")
        for folder in folders:
            write(folder, {"a": b"old"})

    said = set()
    old_again()
    for notes in every_step(run):
        finished = clear_up(notes)
        said.add(finished)
        word = b"new" if finished else b"old"
        assert read_folder(tmp_path) == {"file": word, "one/a": word, "two/a": word}
        old_again()
    assert said == {True, False}


@pytest.mark.usefixtures("how")
def test_a_folder_is_put_back_where_the_next_one_fails(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, OLD)

    def refuse_later(_folder: Path, _named: Path) -> None:
        if read_folder(one) == NEW:
            raise UsageError("no")

    def replace_both() -> None:
        with hold_folder(one, lambda *_: None) as first, hold_folder(two, refuse_later) as second:
            two.mkdir(exist_ok=True)
            (two / "a").touch()
            with folder_in_place(first, NEW), folder_in_place(second, NEW):
                pass

    with pytest.raises(UsageError, match="no"):
        replace_both()
    assert (read_folder(one), read_folder(two)) == (OLD, {"a": b""})
    assert sorted(tmp_path.iterdir()) == [one, two]
