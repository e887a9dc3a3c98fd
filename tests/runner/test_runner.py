"""The runner: it times stages, tells of them, and calls them with exactly what their key is of."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from edgeclean.progress import Progress, silent
from edgeclean.runner import Cache, Runner, peak_memory_mib

CALLS: list[tuple[object, ...]] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def doubled(number: int, *, more: tuple[int, ...] = (), progress: Progress = silent) -> int:
    CALLS.append((number, more))
    progress("Doubling", 1, 1)
    return 2 * number


def counted(number: int) -> int:
    if number < 0:
        raise ValueError
    return sum(range(number))


def cache(folder: Path) -> tuple[Cache, list[str]]:
    heard: list[str] = []
    return Cache(folder=folder, notify=heard.append), heard


def test_time_adds_up_and_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    run = Runner(progress=lambda *step: told.append(step))
    assert run("load", counted, 1000) == 499_500
    first = run.seconds["load"]
    run("load", counted, 3_000_000)
    second = run.seconds["load"]
    assert second > first
    run("load", counted, 0)
    assert run.seconds["load"] >= second
    with pytest.raises(ValueError):  # noqa: PT011 - any
        run("load", counted, -1)
    assert told == [("Loading", 0, 1), ("Loading", 1, 1)] * 4
    run("decompose", counted, 1)
    assert list(run.seconds) == ["load", "decompose"]
    assert len(told) == 8, "only stages that do not tell themselves have a title"
    assert 10 < peak_memory_mib() < 100_000


def test_a_stage_that_takes_the_progress_is_given_the_runners() -> None:
    told: list[tuple[str, int, int]] = []
    run = Runner(progress=lambda *step: told.append(step))
    assert run("double", doubled, 4) == 8
    assert told == [("Doubling", 1, 1)]


def test_the_same_call_is_made_once_and_another_anew(tmp_path: Path) -> None:
    kept, heard = cache(tmp_path / "cache")
    told: list[tuple[str, int, int]] = []
    assert Runner(kept).once("double", doubled, 4) == 8
    again = Runner(kept, lambda *step: told.append(step))
    assert again.once("double", doubled, 4) == 8
    assert again.once("double", doubled, number=4, more=()) == 8, "a default is what it is"
    assert CALLS == [(4, ())]
    assert heard == ["double: taken up from an earlier run"] * 2
    assert again.once("double", doubled, 4, more=(1,)) == 8
    assert again.once("double", doubled, 5) == 10
    assert again.once("twice", doubled, 4) == 8
    assert CALLS == [(4, ()), (4, (1,)), (5, ()), (4, ())]
    assert list(again.seconds) == ["double", "twice"]


def test_the_order_of_stages_decides_nothing(tmp_path: Path) -> None:
    kept, heard = cache(tmp_path / "cache")
    first, second = Runner(kept), Runner(kept)
    for number in (1, 2, 3):
        first.once("double", doubled, number)
    for number in (3, 1):
        second.once("double", doubled, number)
    assert len(CALLS) == 3
    assert len(heard) == 2


class Doubler:
    def __init__(self, more: int) -> None:
        self.more = more

    def double(self, number: int) -> int:
        return 2 * number + self.more


def test_what_may_know_more_than_it_is_given_is_refused(tmp_path: Path) -> None:
    hidden = 3

    def closure(number: int) -> int:
        return number + hidden

    for secretive in (closure, Doubler(1).double, functools.partial(doubled, more=(1,))):
        for run in (Runner(), Runner(cache(tmp_path / "cache")[0])):
            with pytest.raises(TypeError, match="may know more than it is given"):
                run.once("double", secretive, 4)
    assert not (tmp_path / "cache").exists()


def test_what_has_no_digest_is_not_given_to_a_kept_stage(tmp_path: Path) -> None:
    kept, _ = cache(tmp_path / "cache")

    given: Any = {1, 2}
    with pytest.raises(TypeError, match="a set has no digest"):
        Runner(kept).once("double", doubled, 4, more=given)
