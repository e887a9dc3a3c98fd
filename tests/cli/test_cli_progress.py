"""What is drawn while a stage runs."""

from __future__ import annotations

import itertools
import re
import time

import pytest

from edgeclean.cli import progress as shown
from edgeclean.cli.console import Reporter
from edgeclean.cli.progress import Lines
from edgeclean.progress import Part, PlannedProgress

PLAN = (
    Part(stage="scan", title="Scan: a", seconds=60.0),
    Part(stage="scan", title="Scan: b", seconds=120.0),
    Part(stage="purify", title="Unlearning, round 1", seconds=120.0),
)


def test_bars_are_drawn_on_a_terminal_and_hostile_words_are_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Reporter().progress() as progress:
        progress("layer [bold]x[/bold]\x1b]0;title\x07", 0, 3)
        progress("layer [bold]x[/bold]\x1b]0;title\x07", 3, 3)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "[bold]x[/bold]" in shown
    assert "\x1b]0;" not in shown


def test_a_stage_is_one_bar_whatever_it_does_at_the_moment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Reporter().progress() as progress:
        for description, done in (("Scan: a", 0), ("Scan: b", 1), ("Scan", 2), ("Scan: c", 0)):
            progress(description, done, 2)
    lines = capsys.readouterr().err.splitlines()
    final = [line for line in lines if "Scan" in line][-2:]
    assert ["Scan" in final[0], "2/2" in final[0]] == [True, True]
    assert ["Scan: c" in final[1], "0/2" in final[1]] == [True, True]


def test_without_a_terminal_a_stage_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().progress() as progress:
        for description, done in (("Scan: a", 0), ("Scan: a", 1), ("Scan: b", 1), ("Scan", 2)):
            progress(description, done, 2)
    assert capsys.readouterr().err == "Scan: a ...\nScan: b ...\n"


def test_quiet_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    with reporter.progress() as progress:
        progress("x", 0, 1)
    reporter.note("y")
    reporter.answer({"z": 1})
    assert capsys.readouterr() == ("", "")


class Clock:
    """Seconds, as a test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_planned_run_says_where_it_is_at_least_every_ten_seconds() -> None:
    clock, said = Clock(), list[tuple[float, str]]()
    lines = Lines(lambda line: said.append((clock.now, line)), clock)
    lines.expect(PLAN)
    assert said == [(1000.0, "about 5 min on this machine (scan 3 min, purify 2 min)")]
    start = clock.now
    for second in range(300):
        clock.now = start + second
        if second in (0, 60, 180):  # a stage tells nothing for minutes; the ticks go on
            lines({0: "Scan: a", 60: "Scan: b", 180: "Unlearning, round 1"}[second], 0, 1)
        lines.tick()
    clock.now = start + 300
    lines.end()
    times = [at for at, _ in said]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 11
    assert len(said) <= 2 + 300 / 10 + 3  # and not much more often
    percents = [int(found[1]) for _, line in said if (found := re.match(r"\[ *(\d+) %\]", line))]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1], said[-1][1]) == (0, 100, "[100 %] done")
    assert (1070.0, "[ 23 %] Scan: b ... about 4 min left") in said


def test_a_run_without_a_plan_says_its_steps_every_ten_seconds() -> None:
    clock, said = Clock(), list[str]()
    lines = Lines(said.append, clock)
    for step in range(31):
        lines("Timing layers", step, 31)
        clock.now += 1
    lines.end()
    assert said == [
        "Timing layers ...",
        "Timing layers ... 10/31",
        "Timing layers ... 20/31",
        "Timing layers ... 30/31",
    ]


def test_ticks_come_by_themselves_and_end_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shown, "TICK_EVERY", 0.01)
    monkeypatch.setattr(shown, "LINE_EVERY", 0.05)
    with Reporter().progress() as progress:
        progress("Scan", 0, 2)
        time.sleep(0.5)  # silent, as one long step is
    said = capsys.readouterr().err
    assert said.count("Scan ... 0/2") >= 2
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_the_whole_run_is_the_last_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Reporter().progress() as progress:
        assert isinstance(progress, PlannedProgress)
        progress.expect(PLAN)
        for title in ("Scan: a", "Scan: b", "Unlearning, round 1"):
            progress(title, 0, 1)
        during = capsys.readouterr().err
        progress("Unlearning, round 1", 1, 1)
    assert "about 5 min on this machine" in during
    final = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err).splitlines()
    assert "Whole run" in [line for line in final if line.strip()][-1]
    assert "100/100" in [line for line in final if line.strip()][-1]


def test_a_quiet_run_of_one_document_is_not_planned() -> None:
    with Reporter(quiet=True, as_json=True).progress() as progress:
        assert not isinstance(progress, PlannedProgress)
