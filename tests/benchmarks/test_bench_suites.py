"""What the suites name exists, and a cell's DER is against its own network."""

from __future__ import annotations

from benchmarks.attacks.table import ATTACKS
from benchmarks.defences.table import RATIOS, SYSTEMS, every_defence
from benchmarks.suite.columns import with_der
from benchmarks.suite.suites import SUITES


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
    assert len(ATTACKS) == 13
    assert all(f"edgeclean-{ratio}x" in SUITES["table2"][0].defences for ratio in RATIOS)


def test_the_decks_network_without_a_gpu_is_that_of_its_table():
    (with_gpu,), (without,) = SUITES["table2"], SUITES["table2-cpu"]
    assert (without.spec, without.data_set) == (with_gpu.spec, with_gpu.data_set)
    assert not without.training.compiled
    known = every_defence()
    for ratio in RATIOS:
        for system in ("plain-tucker", "clp+pruning", "deck", "edgeclean"):
            assert f"{system}-{ratio}x" in without.defences
        asked = known[f"plain-tucker-{ratio}x"].settings[0]
        assert asked.ratio == ratio
    assert all(known[name].images == "none" for name in without.defences)
