"""``python -m benchmarks.suite``: what its options choose, forget and stop."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from bench_images import shade_images
from test_bench_suite import TINY

from benchmarks.attacks.table import ATTACKS
from benchmarks.suite import commands
from benchmarks.suite.columns import columns_of, finished_cells
from benchmarks.suite.suites import SUITES


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command on the tiny suite; its exit code."""
    monkeypatch.setitem(SUITES, "tiny", (TINY,))
    monkeypatch.setattr(
        commands, "read_dataset", lambda *_, **__: (shade_images(64), shade_images(32, seed=1))
    )

    def run(*words):
        folders = ("--folder", str(tmp_path / "networks"), "--results", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["suite", "tiny", *folders, *words])
        return commands.main()

    return run


def names(folder):
    return [(cell["attack"], cell["defence"]) for cell in finished_cells(TINY, folder)]


def test_a_column_and_a_row_alone(command, tmp_path):
    assert command("--attack", "badnets", "--defence", "none") == 0
    assert names(tmp_path) == [("badnets", "none")]
    assert command() == 0
    assert len(names(tmp_path)) == 4
    assert "cells have been run" not in (tmp_path / "tiny.md").read_text()


def test_one_seed_of_the_suite_alone(command, tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "tiny", (replace(TINY, seeds=(0, 1)),))
    assert command("--attack", "badnets", "--defence", "none", "--seed", "1") == 0
    assert [c["seed"] for c in columns_of(SUITES["tiny"][0], tmp_path)] == [1]


def test_a_seed_that_the_suite_has_not_is_refused(command, tmp_path):
    with pytest.raises(SystemExit, match="tiny has no seed 9; it has 0"):
        command("--seed", "9")
    assert not (tmp_path / "networks").exists()


def test_a_column_alone_whose_attack_studies_the_clean_network(command, tmp_path, monkeypatch):
    studied = replace(TINY, attacks={name: ATTACKS[name] for name in ("clean", "trojan")})
    monkeypatch.setitem(SUITES, "tiny", (studied,))
    assert command("--attack", "trojan", "--defence", "none") == 0
    assert [c["attack"] for c in finished_cells(studied, tmp_path)] == ["trojan"]
    assert (tmp_path / "networks/tiny/seed-0/clean/network.safetensors").exists()


def test_fresh_forgets_the_chosen_columns(command, tmp_path):
    command("--attack", "badnets")
    before = columns_of(TINY, tmp_path)[0]["seconds"]
    command("--attack", "badnets")
    assert columns_of(TINY, tmp_path)[0]["seconds"] == before  # nothing was left to do
    command("--attack", "clean")
    command("--attack", "badnets", "--defence", "none", "--fresh")
    assert names(tmp_path) == [("clean", "none"), ("clean", "clp"), ("badnets", "none")]


def test_minutes_that_are_over_end_it_with_a_table_and_an_exit_code_of_its_own(command, tmp_path):
    assert command("--minutes", "1e-9") == commands.OUT_OF_TIME
    assert (tmp_path / "tiny.md").exists()
    codes = [command("--minutes", "1e-9") for _ in range(6)]
    assert codes[-1] == 0  # each call got a step further
    assert len(names(tmp_path)) == 4


def test_columns_are_shared_out_and_those_that_need_the_clean_network_stay_with_it():
    parts = commands.columns_apart(list(ATTACKS), 3)
    assert sorted(name for part in parts for name in part) == sorted(ATTACKS)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    needy = {name for name, make in ATTACKS.items() if make(10, (32, 32)).needs_clean_network}
    assert needy | {"clean"} == set(commands.WITH_CLEAN) <= set(parts[0])
    assert commands.columns_apart(["badnets"], 2) == [["badnets"]]


def test_a_process_is_told_what_the_command_was_told():
    words = ["--minutes", "5", "--fresh", "--jobs", "2", "--defence", "clp", "--seed", "2"]
    options = commands.parsed(["cpu", *words])
    told = commands.parsed(commands.words_of(options, ["sig", "wanet"]))
    assert (told.jobs, told.threads, told.attack) == (1, 1, ["sig", "wanet"])
    same = "suite minutes fresh defence seed data folder results device"
    for name in same.split():
        assert getattr(told, name) == getattr(options, name), name


def test_the_time_of_the_whole_is_told_for_a_run_that_starts_over_alone(command, tmp_path):
    command()
    assert not (tmp_path / "tiny/whole.json").exists()
    command("--fresh")
    assert "In one go, 1 at a time: 0." in (tmp_path / "tiny.md").read_text()
    assert command("--fresh", "--minutes", "1e-9") == commands.OUT_OF_TIME
    assert not (tmp_path / "tiny/whole.json").exists()


def test_collecting_runs_nothing(command, tmp_path):
    command("--attack", "clean")
    assert command("--collect") == 0
    assert "**2 of 4 cells have been run.**" in (tmp_path / "tiny.md").read_text()
