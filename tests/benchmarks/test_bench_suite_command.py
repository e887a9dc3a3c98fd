"""``python -m benchmarks.suite``: what its options choose, forget and stop."""

from __future__ import annotations

import sys

import pytest
from bench_images import shade_images
from test_bench_suite import TINY

from benchmarks import suite
from benchmarks.columns import columns_of, finished_cells
from benchmarks.suites import SUITES


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command on the tiny suite; its exit code."""
    monkeypatch.setitem(SUITES, "tiny", (TINY,))
    monkeypatch.setattr(
        suite, "read_dataset", lambda *_, **__: (shade_images(64), shade_images(32, seed=1))
    )

    def run(*words):
        folders = ("--folder", str(tmp_path / "networks"), "--results", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["suite", "tiny", *folders, *words])
        return suite.main()

    return run


def names(folder):
    return [(cell["attack"], cell["defence"]) for cell in finished_cells(TINY, folder)]


def test_a_column_and_a_row_alone(command, tmp_path):
    assert command("--attack", "badnets", "--defence", "none") == 0
    assert names(tmp_path) == [("badnets", "none")]
    assert command() == 0
    assert len(names(tmp_path)) == 4
    assert "cells have been run" not in (tmp_path / "tiny.md").read_text()


def test_fresh_forgets_the_chosen_columns(command, tmp_path):
    command("--attack", "badnets")
    before = columns_of(TINY, tmp_path)[0]["seconds"]
    command("--attack", "badnets")
    assert columns_of(TINY, tmp_path)[0]["seconds"] == before  # nothing was left to do
    command("--attack", "clean")
    command("--attack", "badnets", "--defence", "none", "--fresh")
    assert names(tmp_path) == [("clean", "none"), ("clean", "clp"), ("badnets", "none")]


def test_minutes_that_are_over_end_it_with_a_table_and_an_exit_code_of_its_own(command, tmp_path):
    assert command("--minutes", "1e-9") == suite.OUT_OF_TIME
    assert (tmp_path / "tiny.md").exists()
    codes = [command("--minutes", "1e-9") for _ in range(6)]
    assert codes[-1] == 0  # each call got a step further
    assert len(names(tmp_path)) == 4


def test_collecting_runs_nothing(command, tmp_path):
    command("--attack", "clean")
    assert command("--collect") == 0
    assert "**2 of 4 cells have been run.**" in (tmp_path / "tiny.md").read_text()
