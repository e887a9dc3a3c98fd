"""A suite runs every cell once, and goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from bench_few import FEW
from bench_images import shade_images

from benchmarks.attacks.table import ATTACKS
from benchmarks.cells import finished_cells, with_der, write_record
from benchmarks.defences.table import RATIOS, SYSTEMS, every_defence
from benchmarks.suite import SuiteRun
from benchmarks.suites import SUITES, Suite, quick_attacks
from benchmarks.tables import markdown
from benchmarks.training import TrainingSettings
from edgeclean.states import ModelSpec

SPEC = ModelSpec(
    architecture="benchmarks.small_resnet:resnet8",
    input_shape=(3, 8, 8),
    classes=4,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
TRAIN, TEST = shade_images(64), shade_images(32, seed=1)
TINY = Suite(
    name="tiny",
    data_set="shades",
    spec=SPEC,
    training=TrainingSettings(epochs=1, batch=32, mixed=False, padding=1),
    train_images=64,
    test_images=32,
    clean_images=16,
    attacks={name: ATTACKS[name] for name in ("clean", "badnets")},
    defences=("none", "clp"),
)
FAMILIES = ("clean", "badnets", "blended", "sig", "wanet", "input-aware-a2a", "trojan")


def run(suite, folder):
    return SuiteRun(suite, TRAIN, TEST, folder).run()


def without_times(cells):
    return [{k: v for k, v in cell.items() if "seconds" not in k} for cell in cells]


def test_cells_are_kept_and_not_run_again(tmp_path, monkeypatch):
    first = run(TINY, tmp_path)
    assert [(cell["attack"], cell["defence"]) for cell in first] == [
        (attack, defence) for attack in ("clean", "badnets") for defence in ("none", "clp")
    ]

    def fail(*_):
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr("benchmarks.suite.train", fail)
    monkeypatch.setattr(SuiteRun, "_cell", fail)
    assert run(TINY, tmp_path) == first == finished_cells(TINY, tmp_path)


def test_a_missing_cell_alone_is_run_again_with_the_same_outcome(tmp_path, monkeypatch):
    first = run(TINY, tmp_path)
    (tmp_path / "tiny/seed-0/badnets/clp.json").unlink()
    assert len(finished_cells(TINY, tmp_path)) == 3
    monkeypatch.setattr("benchmarks.suite.train", None)  # the network itself is kept
    assert without_times(run(TINY, tmp_path)) == without_times(first)


def test_cells_of_other_settings_are_not_mixed_in(tmp_path):
    run(replace(TINY, attacks={"clean": ATTACKS["clean"]}), tmp_path)
    other = replace(TINY, training=replace(TINY.training, epochs=2))
    with pytest.raises(ValueError, match="holds cells of tiny with other settings"):
        run(other, tmp_path)


def test_every_defence_runs_against_every_family_of_attacks(tmp_path, monkeypatch):
    """A slice of `smoke`, and of `table2` with it, so that none of them rots."""
    attacks = {name: quick_attacks()[name] for name in FAMILIES}
    defences = (*SYSTEMS, "clp+pruning-2x", "anp+pruning-2x")
    suite = replace(TINY, name="smoke", attacks=attacks, defences=defences, settings=FEW)
    cells = run(suite, tmp_path / "cells")
    assert [(cell["attack"], cell["defence"]) for cell in cells] == [
        (attack, defence) for attack in FAMILIES for defence in defences
    ]
    by_name = {(cell["attack"], cell["defence"]): cell for cell in cells}
    for (attack, defence), cell in by_name.items():
        assert ("asr" in cell) == (attack != "clean")
        undefended = by_name[attack, "none"]
        halved = defence.startswith(("plain", "deck")) or defence == "edgeclean"
        limit = undefended["macs"] / 2 if halved or "pruning" in defence else undefended["macs"]
        assert cell["macs"] <= limit, (attack, defence)
        assert cell["given"].startswith("1 %") == (
            defence in ("anp", "nad", "i-bau", "fine-tuning", "anp+pruning-2x")
        )
    monkeypatch.setitem(SUITES, "smoke", (suite,))
    write_record("smoke", tmp_path / "cells", tmp_path)
    text = (tmp_path / "smoke.md").read_text()
    assert all(f"(pictures/smoke-{attack}.png)" in text for attack in FAMILIES[1:])
    assert all((tmp_path / f"pictures/smoke-{name}.png").exists() for name in FAMILIES[1:])
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 1 + len(defences)


@pytest.mark.parametrize("name", ["table2", "table4"])
def test_the_decks_tables_run_small_and_stand_beside_its_numbers(name, tmp_path, monkeypatch):
    whole = SUITES[name]
    small = tuple(
        replace(
            part,
            spec=SPEC,
            training=TINY.training,
            train_images=64,
            test_images=32,
            clean_images=16,
            seeds=(0, 1),
            attacks={"badnets": part.attacks["badnets"]},
            settings=FEW,
            timed_runs=min(part.timed_runs, 1),
        )
        for part in whole
    )
    # Higher ratios are out of reach of a network this small.
    small = tuple(
        replace(part, defences=tuple(d for d in part.defences if d[-2:] not in ("3x", "4x")))
        for part in small
    )
    for part in small:
        run(part, tmp_path / "cells")
    monkeypatch.setitem(SUITES, name, small)
    write_record(name, tmp_path / "cells", tmp_path)
    text = (tmp_path / f"{name}.md").read_text()
    cells = json.loads((tmp_path / f"{name}.json").read_text())["cells"]
    assert len(cells) == sum(2 * len(part.defences) for part in small)
    if name == "table2":
        assert all("ms_batch_100" in cell for cell in cells)
        rows = [line for line in text.splitlines() if line.startswith("| anp+pruning-2x")]
        assert rows
        assert rows[0].endswith("| 10 |")
    else:
        (row,) = [line for line in text.splitlines() if line.startswith("| cifar100 | badnets |")]
        assert "| 74.35 / 96.71 |" in row
        assert "| 44.78 / 0.81 |" in row
        assert "| 70.27 / 1.83 |" in row
        assert "| gtsrb | average |" in text


def test_der_is_against_the_undefended_cell():
    def cell(attack, defence, acc, asr):
        rates = {"acc": {"percent": acc}, "asr": {"percent": asr}}
        return {"attack": attack, "defence": defence, "seed": 0, **rates}

    cells = with_der(
        [
            cell("badnets", "none", 90.0, 100.0),
            cell("badnets", "clp", 80.0, 10.0),
            cell("wanet", "none", 90.0, 80.0),
            cell("wanet", "clp", 90.0, 0.0),
            {"attack": "clean", "defence": "clp", "seed": 0, "acc": {"percent": 90.0}},
        ]
    )
    # (fall of ASR - fall of ACC + 1) / 2
    assert [row["der"] for row in cells] == [0.5, 0.9, 0.5, 0.9, None]


def test_a_table_says_what_is_missing(tmp_path):
    suite = replace(TINY, attacks={"clean": ATTACKS["clean"]})
    cells = run(suite, tmp_path)
    part = json.loads((tmp_path / "tiny/suite.json").read_text())
    asked = {"attacks": list(TINY.attacks), "defences": list(TINY.defences)}
    text = markdown(
        {
            "suite": "tiny",
            "command": "python -m benchmarks.suite tiny",
            "environment": {"processor": "any", "device": "cpu"},
            "parts": [{**part, "seeds": [0], "asked": asked}],
            "cells": cells,
        }
    )
    assert "**2 of 4 cells have been run" in text


def test_every_suite_names_known_attacks_and_defences():
    known = every_defence()
    for parts in SUITES.values():
        for suite in parts:
            assert set(suite.defences) <= set(known)
            assert set(suite.attacks) <= set(ATTACKS)
            assert set(every_defence(suite.settings)) == set(known)
    for name in ("smoke", "cpu"):
        assert set(SUITES[name][0].attacks) == set(ATTACKS)
        assert SUITES[name][0].defences == SYSTEMS
    assert len(ATTACKS) == 10
    assert all(f"edgeclean-{ratio}x" in SUITES["table2"][0].defences for ratio in RATIOS)
