"""The ends of the declared ranges are honest: a stage can bear them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report_evidence import scan_report
from small_checkpoint import QUICK, spec, write_checkpoint

from edgeclean import pipeline
from edgeclean.backdoor.findings import ScanReport
from edgeclean.config import PipelineSettings, overlay, settings_from
from edgeclean.load.checkpoint import load_checkpoint

EDGES: tuple[dict[str, Any], ...] = (
    {"purify": {"unlearn": {"batch_size": 1, "stamped_share": 0}}},
    {"purify": {"unlearn": {"stamped_share": 1, "bank_share": 1, "learning_rate": 10}}},
    {"purify": {"unlearn": {"steps": 1, "bank_share": 0, "growth": 1, "ascent_steps": 0}}},
    {"purify": {"bank_triggers": 0, "candidates": 1, "procedural": 1, "general_strength": 0}},
    {"finetune": {"photograph_share": 1}},
    {"finetune": {"adversarial_share": 1, "epsilon": 0, "photograph_share": 0, "batch_size": 2}},
    {"finetune": {"adversarial_share": 1, "epsilon": 1, "feature_weight": 1000}},
    {"finetune": {"steps": 0}},
    {"synthesize": {"count": 1, "recovery_count": 1, "steps": 1, "recovery_steps": 1}},
    {"synthesize": {"class_weight": 0, "smoothness_weight": 0, "learning_rate": 10}},
    {"synthesize": {"class_weight": 1000, "smoothness_weight": 1000, "batch_size": 2}},
    {"scan": {"images": 1, "steps": 1, "bank_candidates": 1}},
    {"latency": {"runs": 1, "warmup_runs": 1, "seed": 2**63 - 1}, "seed": 2**63 - 1},
)


def suspicious_scan(*_: Any, **__: Any) -> ScanReport:
    return scan_report(side=12)


@pytest.mark.slow
@pytest.mark.parametrize("suspected", [True, False])
@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_a_run_at_the_edge_of_a_range_ends_well(
    edge: dict[str, Any], suspected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suspected:
        monkeypatch.setattr(pipeline, "scan", suspicious_scan)
    loaded = load_checkpoint(write_checkpoint(tmp_path), spec(), code_folder=tmp_path)
    made = pipeline.run_stages(loaded, settings_from(PipelineSettings, overlay(QUICK, edge)))
    assert made.parity.max_relative_difference <= 1e-4
