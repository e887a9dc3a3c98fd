"""The page of the levels shows the cells that the study writes, or says that there are none."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from written_pages import ROOT

from benchmarks.studies import effort


@pytest.fixture
def effort_table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    import effort_table

    yield effort_table
    del sys.modules["effort_table"]


def cell(level: str, cores: int) -> dict[str, Any]:
    rates = {"acc": 80.0, "asr": 1.5, "ra": 70.0}
    return {
        "network": "demo",
        "level": level,
        "seed": 0,
        "suspected": [3],
        "true_target": 3,
        **{state: rates for state in ("before", "purified", "compressed")},
        "wall_s": 90.0,
        "processor_s": 150.0,
        "environment": {"processor": "Some CPU", "logical_cores": cores},
    }


def test_every_cell_is_a_row_with_its_machine(effort_table: Any) -> None:
    known = {("demo", level, 0): cell(level, 2) for level in ("quick", "standard")}
    page = effort_table.reference(known)
    assert effort.table(list(known.values())) in page
    assert [line.split(" | ")[1] for line in page.splitlines()[2:4]] == ["quick", "standard"]
    assert "Some CPU with 2 cores," in page


def test_where_nothing_was_measured_the_page_says_so(effort_table: Any) -> None:
    assert effort_table.reference({}) == effort_table.NOT_MEASURED
