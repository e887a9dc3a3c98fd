"""What is left of a run: never nonsense, whatever the stages tell, and right where the plan is."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeclean.progress import Part, Remaining, expected_seconds, forecast, in_words

TITLES = ("a", "b: one", "b: two", "c", "a")
parts = st.lists(
    st.builds(
        Part,
        stage=st.sampled_from(("x", "y")),
        title=st.sampled_from(TITLES),
        seconds=st.floats(0, 1e5),
        expected=st.booleans(),
    ),
    max_size=6,
)
told = st.lists(
    st.tuples(
        st.sampled_from((*TITLES, "b", "unplanned")),
        st.integers(0, 9),
        st.integers(0, 9),
        st.floats(0, 1e5),  # seconds later
    ),
    max_size=30,
)


def plan(*lengths: float) -> list[Part]:
    return [
        Part(stage=f"stage {index}", title=f"part {index}", seconds=float(seconds))
        for index, seconds in enumerate(lengths)
    ]


@given(parts, told)
def test_percentages_never_fall_nor_pass_100_and_time_left_is_never_negative(
    planned: list[Part], calls: list[tuple[str, int, int, float]]
) -> None:
    now, shown = 100.0, [0]
    run = Remaining(planned, now)
    for description, done, total, later in calls:
        for _ in range(2):  # also between two calls
            now += later / 2
            assert 0 <= run.seconds_left(now) < math.inf
            shown.append(run.percent(now))
        run.note(description, min(done, total), total, now)
        assert 0 <= run.seconds_left(now) < math.inf
        shown.append(run.percent(now))
    assert shown == sorted(shown)
    assert all(0 <= one < 100 for one in shown)
    run.end()
    assert (run.percent(now), run.seconds_left(now)) == (100, 0)


def test_a_plan_that_is_right_is_believed() -> None:
    run, now = Remaining(plan(10, 30, 60), 0.0), 0.0
    assert run.seconds_left(0.0) == pytest.approx(100)
    for index, length in enumerate((10, 30, 60)):
        for step in range(11):
            run.note(f"part {index}", step, 10, now + length * step / 10)
            left = 100 - now - length * step / 10
            assert run.seconds_left(now + length * step / 10) == pytest.approx(left, abs=1e-6)
            assert run.percent(now + length * step / 10) == pytest.approx(100 - left, abs=1.01)
        now += length


@pytest.mark.parametrize("slower", [0.2, 3.0])
def test_what_was_measured_corrects_what_is_to_come(slower: float) -> None:
    run = Remaining(plan(200, 300, 500), 0.0)
    run.note("part 0", 0, 10, 0.0)
    assert run.seconds_left(0.0) == pytest.approx(1000)
    run.note("part 0", 5, 10, 100 * slower)  # within a part
    assert run.seconds_left(100 * slower) == pytest.approx(900 * slower, rel=0.2)
    run.note("part 0", 10, 10, 200 * slower)
    run.note("part 1", 0, 10, 200 * slower)
    assert run.seconds_left(200 * slower) == pytest.approx(800 * slower, rel=0.1)


def test_parts_from_the_cache_count_nothing() -> None:
    run = Remaining(plan(20, 30, 50), 0.0)
    run.note("part 2", 0, 10, 0.1)  # nobody told of the first two: they were there already
    assert run.seconds_left(0.1) == pytest.approx(50)
    again = Remaining(plan(20, 30, 50), 0.0)
    for index in (0, 1):  # told, and over at once
        again.note(f"part {index}", 0, 10, 0.01 * index)
        again.note(f"part {index}", 10, 10, 0.01 * (index + 1))
        later = (80, 50)[index]
        assert again.seconds_left(0.01 * (index + 1)) == pytest.approx(later)
    again.note("part 2", 0, 10, 0.02)
    assert again.seconds_left(0.02) == pytest.approx(50)


def test_what_was_not_expected_is_counted_when_it_comes_and_not_before() -> None:
    planned = [
        *plan(10),
        Part(stage="s", title="second", seconds=40.0, expected=False),
        *plan(0, 10),
    ]
    run = Remaining(planned, 0.0)
    assert run.seconds_left(0.0) == pytest.approx(20)
    run.note("part 0", 0, 1, 0.0)
    run.note("second", 0, 1, 10.0)
    assert run.seconds_left(10.0) == pytest.approx(50)


def test_a_title_that_comes_twice_is_two_parts() -> None:
    first, other = plan(10, 20)
    run = Remaining([first, other, first], 0.0)
    for done, now in ((0, 0.0), (10, 10.0)):
        run.note("part 0", done, 10, now)
    run.note("part 1", 0, 10, 10.0)
    run.note("part 0", 0, 10, 30.0)
    assert run.seconds_left(30.0) == pytest.approx(10)
    straight = Remaining([first, first, other], 0.0)
    for done, now in ((0, 0.0), (10, 10.0), (0, 10.0), (5, 15.0)):
        straight.note("part 0", done, 10, now)
    assert straight.seconds_left(15.0) == pytest.approx(25)


def test_a_part_that_takes_longer_than_it_should_is_never_said_to_be_over() -> None:
    run = Remaining(plan(10, 10), 0.0)
    run.note("part 0", 0, 1, 0.0)
    assert run.seconds_left(1000.0) > 10
    assert run.percent(1000.0) == 98


def test_a_slow_first_second_does_not_make_a_short_run_a_long_one() -> None:
    run = Remaining(plan(0.1, 5), 0.0)
    for done, now in ((0, 0.0), (10, 2.0)):  # twenty times as long as expected
        run.note("part 0", done, 10, now)
    assert run.seconds_left(2.0) < 15


@given(parts)
def test_the_stages_add_up_to_the_whole(planned: list[Part]) -> None:
    total = sum(part.seconds for part in planned if part.expected)
    assert sum(expected_seconds(planned).values()) == pytest.approx(total)
    assert Remaining(planned, 0.0).seconds_left(0.0) == pytest.approx(
        total + (planned[0].seconds if planned and not planned[0].expected else 0)
    )


def test_a_forecast_names_the_whole_and_its_stages() -> None:
    planned = [
        Part(stage="scan", title="Scanning: a", seconds=100.0),
        Part(stage="scan", title="Scanning: b", seconds=20.0),
        Part(stage="purify", title="Unlearning, round 1", seconds=30.0),
        Part(stage="purify", title="Unlearning, round 2", seconds=900.0, expected=False),
    ]
    assert forecast(planned) == "about 2 min on this machine (scan 2 min, purify 30 s)"
    assert forecast(plan(2, 1)) == "a few seconds on this machine"  # no stage is worth a word


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "a few seconds"),
        (4.9, "a few seconds"),
        (12, "about 10 s"),
        (52.6, "about 55 s"),
        (58, "about 1 min"),
        (200, "about 3 min"),
        (5900, "about 98 min"),
        (7200, "about 2.0 h"),
    ],
)
def test_a_length_is_told_as_roughly_as_it_is_known(seconds: float, words: str) -> None:
    assert in_words(float(seconds)) == words
