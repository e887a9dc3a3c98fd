"""What is drawn while a stage runs."""

from __future__ import annotations

import pytest

from edgeclean.cli.console import Face


def test_bars_are_drawn_on_a_terminal_and_hostile_words_are_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Face().progress() as progress:
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
    with Face().progress() as progress:
        for description, done in (("Scan: a", 0), ("Scan: b", 1), ("Scan", 2), ("Scan: c", 0)):
            progress(description, done, 2)
    lines = capsys.readouterr().err.splitlines()
    final = [line for line in lines if "Scan" in line][-2:]
    assert ["Scan" in final[0], "2/2" in final[0]] == [True, True]
    assert ["Scan: c" in final[1], "0/2" in final[1]] == [True, True]


def test_without_a_terminal_a_stage_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Face().progress() as progress:
        for description, done in (("Scan: a", 0), ("Scan: a", 1), ("Scan: b", 1), ("Scan", 2)):
            progress(description, done, 2)
    assert capsys.readouterr().err == "Scan: a ...\nScan: b ...\n"


def test_quiet_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    face = Face(quiet=True)
    with face.progress() as progress:
        progress("x", 0, 1)
    face.say("y")
    face.answer({"z": 1})
    assert capsys.readouterr() == ("", "")
