"""A suite runs every cell once, and goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from bench_few import FEW
from bench_images import shade_images

from benchmarks.attacks.patch import badnets
from benchmarks.attacks.table import ATTACKS
from benchmarks.defences.clp import ClpSettings
from benchmarks.defences.table import SYSTEMS
from benchmarks.networks.training import TrainingSettings
from benchmarks.suite import suite_run
from benchmarks.suite.columns import column_path, finished_cells, record_of, write_tables
from benchmarks.suite.commands import OutOfTimeError
from benchmarks.suite.suite_run import SuiteRun
from benchmarks.suite.suites import QUICK_ATTACKS, SUITES, Suite
from edgeclean.networks.state import ModelSpec

SPEC = ModelSpec(
    architecture="benchmarks.networks.small_resnet:resnet8",
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
    """The suite, with its networks and its results in one folder; all cells."""
    SuiteRun(suite, TRAIN, TEST, folder / "networks", folder).run()
    return finished_cells(suite, folder)


def without_times(cells):
    return [
        {k: v for k, v in cell.items() if "seconds" not in k and k != "environment"}
        for cell in cells
    ]


def forget(suite, folder, attack, defence):
    path = column_path(folder, suite, attack, 0)
    column = json.loads(path.read_text())
    del column["cells"][defence]
    path.write_text(json.dumps(column))


def fail(*_):
    raise AssertionError("a finished cell or training was run again")


def test_cells_are_kept_and_not_run_again(tmp_path, monkeypatch):
    first = run(TINY, tmp_path)
    assert [(cell["attack"], cell["defence"]) for cell in first] == [
        (attack, defence) for attack in ("clean", "badnets") for defence in ("none", "clp")
    ]
    monkeypatch.setattr("benchmarks.suite.suite_run.train", fail)
    monkeypatch.setattr(SuiteRun, "_cell", fail)
    assert run(TINY, tmp_path) == first


def test_a_missing_cell_alone_is_run_again_with_the_same_outcome(tmp_path, monkeypatch):
    first = run(TINY, tmp_path)
    forget(TINY, tmp_path, "badnets", "clp")
    assert len(finished_cells(TINY, tmp_path)) == 3
    monkeypatch.setattr("benchmarks.suite.suite_run.train", fail)  # the network itself is kept
    assert without_times(run(TINY, tmp_path)) == without_times(first)


def test_a_missing_column_is_run_beside_those_of_another_session(tmp_path, monkeypatch):
    """The columns alone come along, as they do in a fresh checkout: no network is needed."""
    first = run(replace(TINY, attacks={"clean": ATTACKS["clean"]}), tmp_path)
    shutil.rmtree(tmp_path / "networks")
    trained = []
    whole = suite_run.train
    monkeypatch.setattr(
        "benchmarks.suite.suite_run.train",
        lambda *words, **named: trained.append(words[2].name) or whole(*words, **named),
    )
    cells = run(TINY, tmp_path)
    assert trained == ["badnets"]
    assert cells[:2] == first
    assert [cell["attack"] for cell in cells[2:]] == ["badnets", "badnets"]


def test_the_same_network_trained_again_keeps_its_column(tmp_path):
    """Without the network's file the one seed gives the same network."""
    first = run(TINY, tmp_path)
    shutil.rmtree(tmp_path / "networks")
    forget(TINY, tmp_path, "badnets", "clp")
    again = run(TINY, tmp_path)
    assert again[2] == first[2]  # with its times: it was not measured again
    assert without_times(again) == without_times(first)


def test_another_network_measures_its_whole_column_again(tmp_path):
    run(TINY, tmp_path)
    path = column_path(tmp_path, TINY, "badnets", 0)
    column = json.loads(path.read_text())
    del column["cells"]["clp"]
    column["cells"]["none"]["acc"]["percent"] = -1
    path.write_text(json.dumps({**column, "network_sha256": "0" * 64}))
    assert all(cell["acc"]["percent"] >= 0 for cell in run(TINY, tmp_path))


def test_a_committed_network_is_used_in_place_of_a_training(tmp_path, monkeypatch):
    first = run(TINY, tmp_path / "one")
    kept = tmp_path / "kept/tiny/seed-0"
    kept.mkdir(parents=True)
    for attack in TINY.attacks:
        source = tmp_path / f"one/networks/tiny/seed-0/{attack}/network.safetensors"
        source.rename(kept / f"{attack}.safetensors")
    monkeypatch.setattr("benchmarks.suite.suite_run.KEPT", tmp_path / "kept")
    monkeypatch.setattr("benchmarks.suite.suite_run.train", fail)
    assert without_times(run(TINY, tmp_path / "two")) == without_times(first)


def test_networks_and_columns_of_other_settings_are_not_mixed_in(tmp_path):
    run(replace(TINY, attacks={"clean": ATTACKS["clean"]}), tmp_path)
    other = replace(TINY, training=replace(TINY.training, epochs=2))
    with pytest.raises(ValueError, match="measured with other settings of tiny"):
        run(other, tmp_path)
    column_path(tmp_path, TINY, "clean", 0).unlink()
    with pytest.raises(ValueError, match="was trained with other settings"):
        run(other, tmp_path)


def test_a_cell_of_earlier_settings_is_marked_and_run_again(tmp_path):
    run(TINY, tmp_path)
    stricter = replace(TINY, settings=replace(TINY.settings, clp=ClpSettings(u=0.1)))
    stale = [cell["defence"] for cell in finished_cells(stricter, tmp_path) if cell.get("stale")]
    assert stale == ["clp", "clp"]
    again = run(stricter, tmp_path)
    assert not any(cell.get("stale") for cell in again)
    assert again[1]["settings"] == {"ClpSettings": {"u": 0.1}}


def test_a_column_of_earlier_settings_of_its_attack_is_measured_again(tmp_path):
    run(TINY, tmp_path)
    stronger = {**TINY.attacks, "badnets": lambda classes, size: badnets(
        classes=classes, size=size, rate=0.3
    )}  # fmt: skip
    lines: list[str] = []
    SuiteRun(
        replace(TINY, attacks=stronger),
        TRAIN,
        TEST,
        tmp_path / "new",
        tmp_path,
        report=lines.append,
    ).run()
    assert [line for line in lines if "other settings" in line] == [
        "badnets, seed 0: the attack has other settings now, so all runs again"
    ]
    assert not any(line.startswith("clean") for line in lines)
    column = json.loads(column_path(tmp_path, TINY, "badnets", 0).read_text())
    assert column["attack_settings"]["rate"] == 0.3
    assert set(column["cells"]) == {"none", "clp"}


def test_a_suite_stops_when_its_minutes_are_over_and_goes_on(tmp_path):
    lines = []

    def report(line):
        lines.append(line)
        if len(lines) == 3:
            raise OutOfTimeError

    def begin(report):
        SuiteRun(TINY, TRAIN, TEST, tmp_path / "networks", tmp_path, report=report).run()

    with pytest.raises(OutOfTimeError):
        begin(report)
    assert len(finished_cells(TINY, tmp_path)) == 2  # one line for the epoch, one for each cell
    begin(lines.append)
    assert len(finished_cells(TINY, tmp_path)) == 4
    assert len(lines) == 6


@pytest.mark.slow
def test_every_defence_runs_against_every_family_of_attacks(tmp_path, monkeypatch):
    """A slice of `smoke`, and of `table2` with it, so that none of them rots."""
    attacks = {name: QUICK_ATTACKS[name] for name in FAMILIES}
    defences = (*SYSTEMS, "clp+pruning-2x", "anp+pruning-2x")
    suite = replace(TINY, name="smoke", attacks=attacks, defences=defences, settings=FEW)
    cells = run(suite, tmp_path)
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
    write_tables("smoke", tmp_path)
    text = (tmp_path / "smoke.md").read_text()
    assert all(f"(pictures/smoke-{attack}.png)" in text for attack in FAMILIES[1:])
    assert all((tmp_path / f"pictures/smoke-{name}.png").exists() for name in FAMILIES[1:])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    # The attacks, what the scan said of each, and the matrix.
    assert len(rows) == 2 * (1 + len(FAMILIES)) + 1 + len(defences)
    for attack in FAMILIES:
        found = by_name[attack, "edgeclean-full-size"]["notes"]["scan"]
        said = [
            f"{one['target']}, {one['score']:.1f} ({one['search']})" for one in found["suspects"]
        ]
        target = {"clean": "-", "input-aware-a2a": "all-to-all"}.get(attack, "0")
        assert f"| {attack} | {target} | {'; '.join(said) or 'not found'} |" in text
    assert "not yet run" not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table2", "table2-cpu", "table4"])
def test_the_papers_tables_run_small_and_stand_beside_its_numbers(name, tmp_path, monkeypatch):
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
        run(part, tmp_path)
    monkeypatch.setitem(SUITES, name, small)
    write_tables(name, tmp_path)
    text = (tmp_path / f"{name}.md").read_text()
    cells = record_of(name, tmp_path)["cells"]
    assert len(cells) == sum(2 * len(part.defences) for part in small)
    if name != "table4":
        for cell in cells:
            assert cell["speedup_interval"][0] <= cell["speedup"] <= cell["speedup_interval"][1]
            assert cell["ms_batch_100"] > 0 < cell["ms_batch_100_undefended"]
        (none,) = [line for line in text.splitlines() if line.startswith("| none")]
        assert none.count(" / ") == 2  # ACC, ASR and RA
        rows = [line for line in text.splitlines() if line.startswith("| clp+pruning-2x")]
        assert rows
        assert rows[0].endswith("| 10 |")
    else:
        (row,) = [line for line in text.splitlines() if line.startswith("| cifar100 | badnets |")]
        assert "| 74.35 / 96.71 |" in row
        assert "| 44.78 / 0.81 |" in row
        assert "| 70.27 / 1.83 |" in row
        assert "| gtsrb | average |" in text


def test_a_table_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "tiny", (TINY,))
    run(replace(TINY, attacks={"clean": ATTACKS["clean"]}, defences=("none",)), tmp_path)
    write_tables("tiny", tmp_path)
    text = (tmp_path / "tiny.md").read_text()
    assert "**1 of 4 cells have been run.**" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    matrix = {row[0].removeprefix("| "): row[3:5] for row in rows[-2:]}
    assert float(matrix["none"][0]) >= 0
    assert matrix["none"][1] == "not yet run"
    assert matrix["clp"] == ["not yet run", "not yet run"]
    assert any(row[:2] == ["| badnets", "not yet run"] for row in rows)


def test_a_mean_is_over_the_networks_that_there_are_and_of_no_row_that_lacks_one(
    tmp_path, monkeypatch
):
    three = {name: ATTACKS[name] for name in ("clean", "badnets", "blended")}
    monkeypatch.setitem(SUITES, "tiny", (replace(TINY, attacks=three),))
    run(replace(TINY, defences=("none",)), tmp_path)

    def means():
        write_tables("tiny", tmp_path)
        text = (tmp_path / "tiny.md").read_text()
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        assert "DER: mean over the attacks on the 1 of 2 networks that have run." in text
        return {row[0].removeprefix("| "): row[-1] for row in rows[-2:]}

    assert means() == {"none": "50.0 |", "clp": "- |"}
    run(TINY, tmp_path)
    (cell,) = [c for c in finished_cells(TINY, tmp_path) if c["defence"] == "clp" and "asr" in c]
    assert means()["clp"] == f"{100 * cell['der']:.1f} |"
