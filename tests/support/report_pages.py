"""A whole page; apart from its evidence, for it loads what draws."""

from __future__ import annotations

from typing import Any

from report_evidence import scan_report, synthetic_images

from edgeclean.report.page import render_html

MANIFEST = {"files": {"model.onnx": {"bytes": 500_000, "sha256": "cd" * 32}}}


def whole_page(report: dict[str, Any]) -> str:
    return render_html(MANIFEST, report, images=synthetic_images(), scan=scan_report())
