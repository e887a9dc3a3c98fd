"""A suite runs every cell once, and goes on where it stopped."""

from __future__ import annotations

from bench_images import shade_images

from benchmarks.defences.table import DEFENCES
from benchmarks.suite import SUITES, Suite, markdown, run_suite, with_der
from benchmarks.training import TrainingSettings
from edgeclean.states import ModelSpec

# The narrowest network of the built-in table, on tiny images.
SPEC = ModelSpec(
    architecture="resnet20",
    input_shape=(3, 8, 8),
    classes=4,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
)
TRAIN, TEST = shade_images(64), shade_images(32, seed=1)
TINY = Suite(
    name="tiny",
    training=TrainingSettings(epochs=1, batch=32, mixed=False, padding=1),
    train_images=64,
    test_images=32,
    clean_images=16,
    attacks=("clean", "badnets"),
    defences={name: DEFENCES[name] for name in ("none", "clp")},
    spec=SPEC,
)


def test_cells_are_kept_and_not_run_again(tmp_path, monkeypatch):
    first = run_suite(TINY, TRAIN, TEST, tmp_path)
    assert [(cell["attack"], cell["defence"]) for cell in first] == [
        (attack, defence) for attack in ("clean", "badnets") for defence in ("none", "clp")
    ]

    def fail(*_):
        raise AssertionError("a finished cell was run again")

    monkeypatch.setattr("benchmarks.suite.train", fail)
    monkeypatch.setattr("benchmarks.suite._defend", fail)
    assert run_suite(TINY, TRAIN, TEST, tmp_path) == first


def test_a_missing_cell_alone_is_run_again_with_the_same_outcome(tmp_path, monkeypatch):
    first = run_suite(TINY, TRAIN, TEST, tmp_path)
    (tmp_path / "tiny" / "badnets-clp-0.json").unlink()
    monkeypatch.setattr("benchmarks.suite.train", None)  # the network itself is kept
    again = run_suite(TINY, TRAIN, TEST, tmp_path)
    for cell in (*first, *again):
        del cell["seconds"]
    assert again == first


def test_der_is_against_the_undefended_cell():
    def cell(attack, defence, acc, asr):
        rates = {"acc": {"percent": acc}, "asr": {"percent": asr}}
        return {"attack": attack, "defence": defence, "data": "none", "seed": 0, **rates}

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
    lines = markdown(cells[:4]).splitlines()
    assert len(lines) == 2 + 4
    assert lines[3] == "| badnets | clp | none | 0 | 80.0 | 10.0 | - | 90.0 |"


def test_every_suite_names_known_attacks_and_defences():
    for suite in SUITES.values():
        assert set(suite.defences) == set(DEFENCES)
        assert len(suite.attacks) >= 9
