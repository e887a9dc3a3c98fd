"""The options that `edgeclean compress` alone has: size, purification, signature, stages kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclean.cli.options import RUN

if TYPE_CHECKING:
    from edgeclean.compression.latency_table import LatencyTable

SIZE = "The goal: one of --ratio, --speedup, --latency-budget-ms and --size-budget"
PURIFY = "Purification"

Output = Annotated[
    Path, typer.Option("--output", "-o", help="The bundle's folder.", rich_help_panel=RUN)
]
Ratio = Annotated[
    float | None,
    typer.Option(help="How many times fewer MACs (or parameters).", rich_help_panel=SIZE),
]
Speedup = Annotated[
    float | None,
    typer.Option(
        help="How many times faster, by a latency table; measured here if none is given.",
        rich_help_panel=SIZE,
    ),
]
LatencyBudget = Annotated[
    float | None,
    typer.Option(
        "--latency-budget-ms",
        help="What one run may take, by a latency table; measured here if none is given.",
        rich_help_panel=SIZE,
    ),
]
SizeBudget = Annotated[
    str | None,
    typer.Option(help="What model.onnx may have: bytes, or 500kB, 2MiB.", rich_help_panel=SIZE),
]
TableFile = Annotated[
    Path | None,
    typer.Option(
        "--latency-table",
        help="What each form of a layer takes on the device (`edgeclean latency-table`); with it "
        "no layer is made slower.",
        rich_help_panel=SIZE,
    ),
]
Measure = Annotated[
    str | None, typer.Option(help="What the ratio is of: macs or params.", rich_help_panel=SIZE)
]
Keep = Annotated[
    list[str] | None,
    typer.Option(help="A layer to leave whole; may be repeated.", rich_help_panel=SIZE),
]
RankMultiple = Annotated[
    int | None,
    typer.Option(help="Ranks are multiples of this; the target has its own.", rich_help_panel=SIZE),
]
RanksFile = Annotated[
    Path | None,
    typer.Option(
        help='Ranks of single layers, as TOML: "layer1.0.conv1" = [8, 6], or "keep".',
        rich_help_panel=SIZE,
    ),
]
Purify = Annotated[
    str | None,
    typer.Option(
        help="guided (by the scan), clean-compact (clamp at tau, truncate, tune on labels), or "
        "none.",
        rich_help_panel=PURIFY,
    ),
]
Tau = Annotated[
    float | None,
    typer.Option(
        help="Clamp singular values at this share of the largest; with --purify clean-compact it "
        "is chosen on the synthetic images if not given.",
        rich_help_panel=PURIFY,
    ),
]
SignKey = Annotated[
    Path | None,
    typer.Option(help="Sign the bundle with this private key (PEM).", rich_help_panel=RUN),
]
SignCertificate = Annotated[
    Path | None, typer.Option(help="The certificate of that key (PEM).", rich_help_panel=RUN)
]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        help="Where finished stages are kept, so that a run that was killed goes on from there; "
        "edgeclean's folder in your cache folder if not given.",
        rich_help_panel=RUN,
    ),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no stage.", rich_help_panel=RUN)]
Opset = Annotated[
    int | None, typer.Option(help="ONNX opset; the target has its own.", rich_help_panel=RUN)
]


def goal(
    ratio: float | None,
    measure: str | None,
    rank_multiple: int | None,
    speedup: float | None,
    latency_budget_ms: float | None,
    size: str | None,
) -> dict[str, Any]:
    """What is asked of the ranks, as settings; `RankSettings` refuses two goals."""
    size_budget = None
    if size is not None:
        from edgeclean.gates import read_size

        size_budget = read_size(size)
    return {
        "ratio": ratio,
        "measure": measure,
        "rank_multiple": rank_multiple,
        "speedup": speedup,
        "latency_budget_ms": latency_budget_ms,
        "size_budget": size_budget,
    }


def table_of(path: Path | None) -> LatencyTable | None:
    """The latency table in a file; None if none is named."""
    if path is None:
        return None
    from edgeclean.compression.latency_table import read_latency_table

    return read_latency_table(path)
