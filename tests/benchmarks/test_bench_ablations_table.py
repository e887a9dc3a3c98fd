"""The table of ablations shows each network's rows, and says which were not run."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.rendering.ablations_table import write_ablations_table


def test_a_row_of_one_network_is_not_said_of_another(tmp_path: Path) -> None:
    rates = {"acc": 80.04, "asr": 1.25, "ra": 79.0, "processor_seconds": 61.4}
    rows = {
        "one": {"unlearning: defaults": rates, "recovery: nothing": rates | {"agreement": 55.8}},
        "two": {"unlearning: defaults": rates | {"acc": 70.0}},
    }
    for name, mine in rows.items():
        (tmp_path / f"ablations-{name}.json").write_text(json.dumps({"rows": mine}))
    write_ablations_table(tmp_path)
    assert (tmp_path / "ablations.md").read_text().splitlines()[2:] == [
        "| unlearning: defaults | 80.0 / 1.2, -, 61 | 70.0 / 1.2, -, 61 |",
        "| recovery: nothing | 80.0 / 1.2, 55.8, 61 | not yet run |",
    ]
