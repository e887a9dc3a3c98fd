"""Purification is kept between ratios; its table says which networks and seeds its means are of."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
from bench_few import FEW
from bench_images import tiny_network

from benchmarks.rendering import purify_table
from benchmarks.studies import purify as rows
from benchmarks.studies.compress_zoo import Cell
from edgeclean import pipeline
from edgeclean.backdoor.purify import purify
from edgeclean.networks.cost import count_macs
from edgeclean.networks.state import LoadedNetwork, same_weights


def cell(network: str, target: int | None, batchnorm: bool, asr: float, acc: float) -> Cell:
    rates = {"acc": acc, "asr": asr, "ra": 50.0}
    return {
        "network": network,
        "method": "m",
        "seed": 0,
        "true_target": target,
        "batchnorm": batchnorm,
        "before": {"acc": 90.0, "asr": 100.0, "ra": 0.0},
        "full": rates,
    }


def test_means_are_of_one_kind_of_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(purify_table, "RESULTS", tmp_path)
    cells = [
        cell("one", 0, True, asr=2.0, acc=89.0),
        cell("two", 1, True, asr=8.0, acc=86.0),
        cell("three", 1, False, asr=50.0, acc=70.0),
        cell("four", None, True, asr=1.0, acc=90.0),
    ]
    cells[2]["4x_refused"] = "--ratio 4 of macs cannot be met"
    purify_table.write_results(cells)
    text = (tmp_path / "purify.md").read_text()
    assert "| m | backdoored | 2 | full | 5.0 / 8.0 | 2.5 / 4.0 |" in text
    assert "| m | backdoored, no BatchNorm | 1 | full | 50.0 / 50.0 | 20.0 / 20.0 |" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| three |")]
    assert row.endswith("|  | refused |")
    assert "| m | clean | 1 | full | 1.0 / 1.0 | 0.0 / 0.0 |" in text
    assert purify_table.known_cells().keys() == {
        (name, "m", 0) for name in ("one", "two", "three", "four")
    }


def test_a_row_over_seeds_tells_the_worst_and_how_many_were_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purify_table, "RESULTS", tmp_path)
    cells = [cell("one", 0, True, asr=asr, acc=89.0) | {"seed": asr} for asr in (2, 4, 9)]
    cells[1]["4x"] = {"acc": 70.0, "asr": 3.0, "ra": 60.0}
    purify_table.write_results(cells)
    text = (tmp_path / "purify.md").read_text()
    assert "| 89.0 / 5.0 (worst 9.0) / 50.0 |" in text
    assert "| 70.0 / 3.0 / 60.0, 1 of 3 seeds |" in text


def test_a_cell_that_lacks_a_ratio_is_made_again() -> None:
    made = cell("one", 0, True, asr=2.0, acc=89.0) | {"2x": {}, "4x_refused": "cannot be met"}
    assert not purify_table.lacks(made, [2.0, 4.0])
    assert purify_table.lacks(made, [2.0, 3.0])
    assert purify_table.lacks(None, [2.0])
    assert not purify_table.lacks({"left_out": "no BatchNorm"}, [2.0])


def test_another_ratio_takes_up_what_the_first_has_purified(tmp_path, monkeypatch):
    purified = []

    @functools.wraps(purify)
    def counted(*arguments, **named):
        purified.append(arguments[0])
        return purify(*arguments, **named)

    monkeypatch.setattr(pipeline, "purify", counted)
    monkeypatch.setattr(rows, "KEPT", tmp_path)
    network = tiny_network()
    came = LoadedNetwork(module=network.module, spec=network.spec, source_sha256="0" * 64)
    run = rows._ByEdgeclean(came, 0)
    (full, half, _), (again, third, _) = (
        run(replace(FEW.edgeclean, ranks=replace(FEW.edgeclean.ranks, ratio=ratio)))
        for ratio in (1.5, 2.0)
    )
    assert len(purified) == 1
    assert same_weights(full.module, again.module)
    shape = network.spec.input_shape
    assert count_macs(half.module, shape) > count_macs(third.module, shape)
