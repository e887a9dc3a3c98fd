"""The table of the general defence: rates by each way, and the means of what was attacked."""

from __future__ import annotations

from typing import Any

from benchmarks.studies import general_defence
from benchmarks.studies.general_defence import BEFORE, STRENGTHS


def cell(network: str, target: int | None, *asr: float) -> dict[str, Any]:
    ways = zip((BEFORE, *STRENGTHS), asr, strict=True)
    rates = {way: {"acc": 90.0, "asr": rate, "ra": 80.0} for way, rate in ways}
    return {"network": network, "true_target": target, **rates}


def test_the_mean_is_of_the_attacked_alone_whatever_their_target() -> None:
    cells = [
        cell("cpu badnets", 0, 100.0, 50.0, 10.0),
        cell("cpu badnets-a2a", None, 80.0, 40.0, 20.0),
        cell("zoo resnet20-clean", None, 1.4, 1.2, 1.3),
    ]
    *_, all_to_all, control, mean = general_defence.table(cells).splitlines()
    assert all_to_all.startswith("| cpu badnets-a2a | - | 90.0 / 80.0 / 80.0 |")
    assert control.startswith("| zoo resnet20-clean | - | 90.0 / 1.4 / 80.0 |")
    assert mean == (
        "| **mean of 2 attacked** | | 90.0 / 90.0 / 80.0 | 90.0 / 45.0 / 80.0 "
        "| 90.0 / 15.0 / 80.0 |"
    )


def test_a_network_without_a_trigger_has_its_accuracy_alone() -> None:
    clean = cell("cpu clean", None, 0.0, 0.0, 0.0)
    for way in general_defence.WAYS:
        clean[way] = {"acc": 86.9}
    row = general_defence.table([clean]).splitlines()[-1]
    assert row == "| cpu clean | - | 86.9 | 86.9 | 86.9 |"
